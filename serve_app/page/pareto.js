// The portfolio: accuracy against latency, or against size.

import { byId, bytes, element, milliseconds, number, percent } from "./words.js";
import { drawing, key, logTicksWithin, mark, path, scale } from "./draw.js";

const HEIGHT = 230;
const AGAINST = {
  latency: { of: (variant) => variant.latency.p50_ms, title: "latency of one image where it was profiled, p50 (ms)" },
  size: { of: (variant) => variant.structural_parameters, title: "structural parameters" },
};
let against = "latency";
let variants = [];

export function show(known) {
  variants = known;
  redraw();
}

const state = (variant) => (variant.active ? "serves" : !variant.usable ? "not eligible" : variant.ready ? "ready" : "deflated");

const boxAround = (x, y, w, h) => ({ left: x - w, right: x + w, top: y - h, bottom: y + h });
const overlap = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;

function redraw() {
  if (!variants.length) return;
  const { of, title } = AGAINST[against];
  const shown = [...variants].sort((a, b) => of(a) - of(b));
  const active = shown.find((variant) => variant.active);
  const label = `Accuracy against ${title}. ${shown.map((v) => `${v.name}: ${percent(v.validation_accuracy)}, ${number(of(v))}`).join("; ")}. ${active ? `${active.name} serves.` : ""}`;
  const { svg, width } = drawing(byId("pareto").querySelector(".plot"), HEIGHT, label);
  const [left, right, top, bottom] = [48, width - 14, 22, HEIGHT - 42];

  const accuracies = shown.map((variant) => 100 * variant.validation_accuracy);
  const [lowest, highest] = [Math.min(...accuracies), Math.max(...accuracies)];
  const step = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50].find((each) => (highest - lowest) / each <= 4) ?? 50;
  const ends = [Math.floor(lowest / step - 0.2) * step, Math.min(Math.ceil(highest / step + 0.2) * step, Math.max(100, highest + step))];
  const y = scale(ends[0], ends[1], bottom, top);
  for (let tick = ends[0]; tick <= ends[1] + step / 2; tick += step) {
    if (tick > 100 + 1e-9) break;
    svg.append(mark("line", { class: "grid", x1: left, x2: right, y1: y(tick), y2: y(tick) }));
    svg.append(mark("text", { x: left - 8, y: y(tick) + 4, "text-anchor": "end" }, tick.toFixed(step < 1 ? 1 : 0)));
  }
  const [least, most] = [0.55 * of(shown[0]), of(shown.at(-1)) / 0.7];
  const x = scale(least, most, left, right, true);
  for (const tick of logTicksWithin(least, most)) {
    svg.append(mark("line", { class: "grid", x1: x(tick), x2: x(tick), y1: bottom, y2: bottom + 5 }));
    svg.append(mark("text", { x: x(tick), y: bottom + 18, "text-anchor": "middle" }, number(tick)));
  }
  svg.append(mark("text", { x: right, y: HEIGHT - 4, "text-anchor": "end" }, title));

  const place = (variant) => [x(of(variant)), y(100 * variant.validation_accuracy)];
  svg.append(mark("path", { class: "front", d: path(shown.map(place)) }));
  for (const variant of [...shown].sort((a, b) => a.active - b.active)) {
    const [px, py] = place(variant);
    const kind = variant.active ? "active" : variant.usable ? "" : "out";
    const point = mark("circle", { class: `point ${kind}`, cx: px, cy: py, r: variant.active ? 6.5 : 5 });
    point.append(mark("title", {}, `${variant.name}: ${percent(variant.validation_accuracy)}, ${milliseconds(variant.latency.p50_ms)} ms, ${number(variant.structural_parameters)} parameters; ${state(variant)}`));
    svg.append(point);
  }
  // A label above, right, below or left of its point, where it covers no other and no point; else none.
  const taken = shown.map((variant) => boxAround(...place(variant), 7, 7));
  for (const variant of [...shown].sort((a, b) => b.active - a.active)) {
    const [px, py] = place(variant);
    const half = 3 + 3.7 * variant.name.length;
    const places = [[px, py - 17], [px + half + 9, py], [px, py + 17], [px - half - 9, py]];
    const free = places.find(([cx, cy]) => {
      const box = boxAround(cx, cy, half, 7);
      return box.left >= left && box.right <= width && box.bottom <= bottom && !taken.some((other) => overlap(box, other));
    });
    if (free || variant.active) {
      const [cx, cy] = free ?? places[0];
      taken.push(boxAround(cx, cy, half, 7));
      svg.append(mark("text", { class: variant.active ? "strong" : "name", x: cx, y: cy + 4, "text-anchor": "middle" }, variant.name));
    }
  }
  const keys = [key("dot active", "serves"), key("dot", "eligible")];
  if (shown.some((variant) => !variant.usable)) keys.push(key("dot out", "not eligible"));
  byId("pareto").querySelector("figcaption").replaceChildren(element("b", {}, "Validation accuracy, %"), ...keys);

  const lines = variants.map((variant) => {
    const memory = bytes(variant.memory_bytes).join(" ");
    const cells = [percent(variant.validation_accuracy), milliseconds(variant.latency.p50_ms), number(variant.structural_parameters), memory];
    return element("tr", {}, element("th", { scope: "row" }, variant.name), ...cells.map((cell) => element("td", {}, cell)), element("td", { class: "text" }, state(variant)));
  });
  byId("variants").querySelector("tbody").replaceChildren(...lines);
}

for (const input of document.querySelectorAll("[name=against]")) {
  if (input.checked) against = input.value;
  input.addEventListener("change", () => {
    against = input.value;
    redraw();
  });
}
new ResizeObserver(redraw).observe(byId("portfolio"));
