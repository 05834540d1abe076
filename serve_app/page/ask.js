// One image to POST /predict, and its answer.

import { byId, duration, element, percent } from "./words.js";
import { mark } from "./draw.js";

const SHOWN = 5;
let classes = [];
let asked = 0;

/** The names of the model's classes, in the order of its logits. */
export function know(names) {
  classes = names;
}

function softmax(logits) {
  const highest = Math.max(...logits);
  const powers = logits.map((logit) => Math.exp(logit - highest));
  const sum = powers.reduce((total, power) => total + power, 0);
  return powers.map((power) => power / sum);
}

async function ask(file) {
  const turn = ++asked;
  preview(file);
  say(element("p", {}, "asking …"));
  const begin = performance.now();
  let said;
  try {
    const response = await fetch("predict", { method: "POST", body: file, headers: { "Content-Type": file.type || "application/octet-stream" } });
    const took = performance.now() - begin;
    const answer = await response.json().catch(() => ({}));
    said = response.ok ? told(answer, took) : [wrong(answer.error ?? `the service answers ${response.status}`)];
  } catch {
    said = [wrong("the service does not answer")];
  }
  if (turn === asked) say(...said); // not that of an image before
}

const wrong = (text) => element("p", { class: "error" }, text);
const say = (...parts) => byId("answer").replaceChildren(...parts);

function told(answer, took) {
  const [first] = answer.predictions;
  const shares = softmax(first.logits);
  const order = shares.map((_, index) => index).sort((a, b) => shares[b] - shares[a]).slice(0, SHOWN);
  const table = element("table", {}, element("caption", { class: "unseen" }, "The most probable classes"));
  for (const index of order) {
    const bar = mark("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" });
    bar.append(mark("rect", { width: Math.max(0.5, 100 * shares[index]), height: 10 }));
    const name = classes[index] ?? `class ${index}`;
    table.append(element("tr", {}, element("th", { scope: "row", title: name }, name), element("td", {}, bar), element("td", {}, percent(shares[index]))));
  }
  const text = element("p", { class: "said" }, element("strong", { id: "class" }, first.class));
  text.append(element("small", {}, `by variant ${answer.variant}, ${duration(took)} there and back`));
  return [text, table];
}

function preview(file) {
  const image = byId("preview");
  URL.revokeObjectURL(image.src);
  image.onload = () => {
    image.classList.toggle("small", image.naturalWidth < 88);
    image.hidden = false;
  };
  image.onerror = () => {
    image.hidden = true;
  };
  image.alt = `the image that was asked about${file.name ? `, ${file.name}` : ""}`;
  image.src = URL.createObjectURL(file);
}

const imageOf = (transfer) => [...(transfer?.files ?? [])][0];

const drop = byId("drop");
byId("file").addEventListener("change", (event) => {
  if (event.target.files.length) ask(event.target.files[0]);
  event.target.value = ""; // the same file may be chosen again
});
drop.addEventListener("dragover", (event) => {
  event.preventDefault();
  drop.classList.add("over");
});
drop.addEventListener("dragleave", () => drop.classList.remove("over"));
drop.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  const file = imageOf(event.dataTransfer);
  if (file) ask(file);
  else say(wrong("that is no file: drop an image file, PNG or JPEG"));
});
// A file that misses its place must not replace the page.
for (const kind of ["dragover", "drop"]) addEventListener(kind, (event) => event.preventDefault());
addEventListener("paste", (event) => {
  const file = imageOf(event.clipboardData);
  if (file) ask(file);
});
