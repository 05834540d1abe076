// The charts over time: they share an axis, and a moment that all of them tell of.

import { byId, clock, count, element, milliseconds, number } from "./words.js";
import { drawing, key, linearTicks, logTicks, mark, path, scale } from "./draw.js";

const RIGHT = 10;
const TOP = 8;
const STEPS = [15, 30, 60, 120, 300];

export const rows = []; // {t, arrived, answered, refused, causes, p50, p99, queue, variant}, a second each
const view = { span: 300, end: 0, moment: null, left: 48, objective: null, names: [] };

/** Shows what was known at `end`, in seconds since the epoch. */
export function draw(end, status) {
  view.end = end;
  if (status) {
    view.objective = status.policy?.objective_ms ?? null;
    view.names = status.variants.map((variant) => variant.name).reverse(); // the largest on top
  }
  redraw();
}

function redraw() {
  const begin = view.end - view.span;
  const seen = rows.filter((row) => row.t >= begin);
  const names = [...new Set([...view.names, ...seen.map((row) => row.variant)])];
  view.left = Math.min(96, Math.max(48, 14 + 7.5 * Math.max(0, ...names.map((name) => name.length))));
  const told = view.moment === null ? seen.at(-1) : rowAt(view.moment);
  drawRate(seen, told);
  drawLatency(seen, told);
  drawQueue(seen, told);
  drawVariants(seen, told, names);
  drawAxis(told);
  if (byId("seconds").open) fillTable();
}

const rowAt = (t) => rows.find((row) => Math.abs(row.t - t) <= 0.5);
const caption = (id, title, ...keys) => byId(id).querySelector("figcaption").replaceChildren(element("b", {}, title), ...keys);
const range = (values, unit) => (values.length ? `between ${number(Math.min(...values))} and ${number(Math.max(...values))} ${unit}` : "nothing yet");

/** The frame of one chart: its grid, and functions to places. */
function frame(id, height, ticks, y, text, label) {
  const { svg, width } = drawing(byId(id).querySelector(".plot"), height, label);
  const x = scale(view.end - view.span, view.end, view.left, width - RIGHT);
  for (const tick of ticks) {
    svg.append(mark("line", { class: "grid", x1: view.left, x2: width - RIGHT, y1: y(tick), y2: y(tick) }));
    svg.append(mark("text", { x: view.left - 8, y: y(tick) + 4, "text-anchor": "end" }, text(tick)));
  }
  return { svg, x, width };
}

/** Points of one figure, broken where seconds are missing or it is null. */
function* points(seen, x, y, value) {
  let before = null;
  for (const row of seen) {
    if (before !== null && row.t - before > 1.5) yield null;
    const found = value(row);
    yield found === null ? null : [x(row.t + 0.5), y(found)];
    before = row.t;
  }
}

/** Points that stand alone would be no line: a short one each. */
function line(svg, kind, drawn) {
  const lone = drawn.replace(/M([\d.-]+),([\d.-]+)(?=M|$)/g, (_, px, py) => `M${px},${py}h1.5`);
  svg.append(mark("path", { class: `line ${kind}`, d: lone }));
}

function showMoment(svg, x, height) {
  if (view.moment !== null) {
    const at = x(view.moment + 0.5);
    svg.append(mark("line", { class: "cursor", x1: at, x2: at, y1: 0, y2: height }));
  }
}

function drawRate(seen, told) {
  const height = 130;
  const ticks = linearTicks(Math.max(3, ...seen.map((row) => Math.max(row.arrived, row.refused))));
  const y = scale(0, ticks.at(-1), height - 4, TOP);
  const label = `Requests per second: ${range(seen.map((row) => row.arrived), "arrived")}; ${range(seen.map((row) => row.refused), "refused")}`;
  const { svg, x } = frame("rate", height, ticks, y, number, label);
  const arrived = path(points(seen, x, y, (row) => row.arrived));
  for (const piece of arrived.split(/(?=M)/)) {
    const places = [...piece.matchAll(/[ML]([\d.-]+),/g)];
    if (places.length) svg.append(mark("path", { class: "area", d: `${piece}V${y(0)}H${places[0][1]}Z` }));
  }
  line(svg, "main", arrived);
  if (seen.some((row) => row.refused)) line(svg, "bad", path(points(seen, x, y, (row) => row.refused)));
  showMoment(svg, x, height);
  const causes = told && Object.entries(told.causes).filter(([, times]) => times);
  const why = causes?.length ? ` (${causes.map(([cause]) => cause).join(", ")})` : "";
  caption("rate", "Requests per second", key("main", "arrived", told ? number(told.arrived) : "–"), key("bad", "refused", told ? number(told.refused) + why : "–"));
}

function drawLatency(seen, told) {
  const height = 150;
  const known = seen.flatMap((row) => (row.p50 === null ? [] : [row.p50, row.p99]));
  const limits = view.objective === null ? known : [...known, view.objective];
  const { low, high, ticks } = limits.length ? logTicks(Math.max(0.01, Math.min(...limits)), Math.max(...limits)) : { low: 1, high: 100, ticks: [1, 10, 100] };
  const y = scale(low, high, height - 8, TOP, true);
  const said = [range(seen.flatMap((row) => row.p50 ?? []), "ms at the median"), range(seen.flatMap((row) => row.p99 ?? []), "ms at the 99th percentile")];
  const goal = view.objective === null ? "" : `; the objective is ${milliseconds(view.objective)} ms`;
  const { svg, x, width } = frame("latency", height, ticks, y, (tick) => count(tick), `Latency: ${said.join("; ")}${goal}`);
  if (view.objective !== null) {
    svg.append(mark("line", { class: "line limit", x1: view.left, x2: width - RIGHT, y1: y(view.objective), y2: y(view.objective) }));
  }
  line(svg, "faint", path(points(seen, x, y, (row) => row.p50 && Math.max(row.p50, low))));
  line(svg, "main", path(points(seen, x, y, (row) => row.p99 && Math.max(row.p99, low))));
  showMoment(svg, x, height);
  const keys = [key("main", "p99", told?.p99 == null ? "–" : milliseconds(told.p99)), key("faint", "p50", told?.p50 == null ? "–" : milliseconds(told.p50))];
  if (view.objective !== null) keys.push(key("limit", "objective", number(view.objective)));
  caption("latency", "Latency, ms", ...keys);
}

function drawQueue(seen, told) {
  const height = 84;
  const ticks = linearTicks(Math.max(2, ...seen.map((row) => row.queue)), 2);
  const y = scale(0, ticks.at(-1), height - 4, TOP);
  const { svg, x } = frame("queue", height, ticks, y, number, `Requests inside: ${range(seen.map((row) => row.queue), "at most in a second")}`);
  line(svg, "main", path(points(seen, x, y, (row) => row.queue)));
  showMoment(svg, x, height);
  caption("queue", "Queue, requests inside", key("main", "at most", told ? number(told.queue) : "–"));
}

/** A lane for each variant; filled while it served. */
function drawVariants(seen, told, names) {
  const lane = 15;
  const height = Math.max(1, names.length) * (lane + 3) + 4;
  const stretches = [];
  for (const row of seen) {
    const last = stretches.at(-1);
    if (last && last.variant === row.variant && row.t - last.end < 0.5) last.end = row.t + 1;
    else stretches.push({ variant: row.variant, begin: row.t, end: row.t + 1 });
  }
  const said = stretches.slice(-8).map((each) => `${each.variant} until ${clock(each.end)}`).join(", ");
  const { svg, width } = drawing(byId("variant").querySelector(".plot"), height, `Variant that served: ${said || "nothing yet"}`);
  const x = scale(view.end - view.span, view.end, view.left, width - RIGHT);
  const top = (name) => 4 + names.indexOf(name) * (lane + 3);
  for (const name of names) {
    const short = name.length > 11 ? `${name.slice(0, 10)}…` : name;
    svg.append(mark("rect", { class: "lane", x: view.left, y: top(name), width: width - RIGHT - view.left, height: lane }));
    svg.append(mark("text", { class: name === told?.variant ? "strong" : "", x: view.left - 8, y: top(name) + 12, "text-anchor": "end" }, short));
  }
  for (const { variant, begin, end } of stretches) {
    const from = Math.max(x(begin), view.left);
    svg.append(mark("rect", { class: "held", x: from, y: top(variant), width: Math.max(0, x(end) - from), height: lane }));
  }
  showMoment(svg, x, height);
  caption("variant", "Active variant", key("none", "", told?.variant ?? "–"));
}

function drawAxis(told) {
  const host = byId("moment");
  const { svg, width } = drawing(host, 22);
  const x = scale(view.end - view.span, view.end, view.left, width - RIGHT);
  const step = STEPS.find((each) => (each / view.span) * (width - view.left) >= 64) ?? 300;
  const offset = 60 * new Date(1e3 * view.end).getTimezoneOffset();
  for (let tick = Math.ceil((view.end - view.span - offset) / step) * step + offset; tick <= view.end; tick += step) {
    svg.append(mark("line", { class: "grid", x1: x(tick), x2: x(tick), y1: 0, y2: 5 }));
    if (x(tick) <= width - 26) svg.append(mark("text", { x: x(tick), y: 18, "text-anchor": "middle" }, clock(tick, step < 60)));
  }
  if (view.moment !== null) {
    const at = Math.min(Math.max(x(view.moment + 0.5), view.left), width - 28);
    const back = mark("rect", { class: "behind", x: at - 30, y: 4, width: 60, height: 18 });
    svg.append(back, mark("text", { class: "strong", x: at, y: 18, "text-anchor": "middle" }, clock(view.moment)));
  }
  const ms = (value) => (value === null ? "none answered" : `${milliseconds(value)} ms`);
  host.setAttribute("aria-valuemin", Math.round(view.end - view.span));
  host.setAttribute("aria-valuemax", Math.round(view.end));
  host.setAttribute("aria-valuenow", Math.round(told?.t ?? view.end));
  const said = told && `${clock(told.t)}: ${told.arrived} arrived, ${told.refused} refused, p99 ${ms(told.p99)}, queue ${told.queue}, ${told.variant}`;
  host.setAttribute("aria-valuetext", said ?? "nothing known of that second");
}

function fillTable() {
  const ms = (value) => (value === null ? "–" : milliseconds(value));
  const lines = rows.slice(-60).reverse().map((row) => {
    const cells = [row.arrived, row.answered, row.refused, ms(row.p50), ms(row.p99), row.queue, row.variant];
    return element("tr", {}, element("th", { scope: "row" }, clock(row.t)), ...cells.map((cell) => element("td", {}, String(cell))));
  });
  byId("seconds").querySelector("tbody").replaceChildren(...lines);
}

function choose(moment) {
  const first = view.end - view.span;
  view.moment = moment === null ? null : Math.min(Math.max(moment, first), rows.at(-1)?.t ?? first);
  redraw();
}

function follow(event) {
  const box = event.currentTarget.getBoundingClientRect();
  const share = (event.clientX - box.left - view.left) / (box.width - RIGHT - view.left);
  if (share < 0 || share > 1) return choose(null);
  const t = view.end - view.span + share * view.span;
  const row = rows.findLast((each) => each.t <= t);
  choose(row && t - row.t < 1.5 ? row.t : Math.floor(t));
}

const KEYS = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10 };

function press(event) {
  const last = rows.at(-1)?.t ?? view.end;
  if (event.key in KEYS) choose((view.moment ?? last) + KEYS[event.key]);
  else if (event.key === "Home") choose(view.end - view.span);
  else if (event.key === "End") choose(last);
  else if (event.key === "Escape") choose(null);
  else return;
  event.preventDefault();
}

for (const host of [...document.querySelectorAll("#load .plot"), byId("moment")]) {
  host.addEventListener("pointermove", follow);
  host.addEventListener("pointerdown", follow);
  host.addEventListener("pointerleave", () => choose(null));
}
byId("moment").addEventListener("keydown", press);
byId("moment").addEventListener("blur", () => choose(null));
byId("seconds").addEventListener("toggle", redraw);
for (const input of document.querySelectorAll("[name=span]")) {
  if (input.checked) view.span = Number(input.value);
  input.addEventListener("change", () => {
    view.span = Number(input.value);
    redraw();
  });
}
new ResizeObserver(redraw).observe(byId("load"));
