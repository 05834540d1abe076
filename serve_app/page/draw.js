// Axes and marks, as SVG.

// The namespace of SVG, of a document that has none of it yet.
const SPACE = new DOMParser().parseFromString("<svg></svg>", "text/html").querySelector("svg").namespaceURI;

export function mark(tag, attributes = {}, text) {
  const made = document.createElementNS(SPACE, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

/** An empty drawing in `host`, as wide as that is; `label` is what those hear who do not see it. */
export function drawing(host, height, label) {
  const width = Math.max(host.clientWidth, 120);
  const attributes = { viewBox: `0 0 ${width} ${height}`, height };
  const svg = mark("svg", label ? { ...attributes, role: "img", "aria-label": label } : { ...attributes, "aria-hidden": "true" });
  host.replaceChildren(svg);
  return { svg, width, height };
}

/** From [low, high] to [start, end]; logarithmic for positive numbers if so asked. */
export function scale(low, high, start, end, logarithmic = false) {
  const at = logarithmic ? Math.log : (value) => value;
  const [first, last] = [at(low), at(high)];
  return (value) => start + ((at(value) - first) / (last - first)) * (end - start);
}

/** The next of 1, 2, 5, 10, … that is no less. */
export function nice(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return power * [1, 2, 5, 10].find((step) => step * power >= value * (1 - 1e-9));
}

/** From 0 to at least `highest`, about `steps` of them. */
export function linearTicks(highest, steps = 3) {
  const step = nice(highest / steps);
  return Array.from({ length: Math.ceil(highest / step - 1e-9) + 1 }, (_, i) => i * step);
}

/** 1, 2, 5, 10, … around [low, high], thinned to `most`. */
export function logTicks(low, high, most = 5) {
  const ticks = [];
  for (let exponent = Math.floor(Math.log10(low)); 10 ** exponent <= 10 * high; exponent++) {
    ticks.push(...[1, 2, 5].map((digit) => Number(`${digit}e${exponent}`)));
  }
  const first = Math.max(0, ticks.findLastIndex((tick) => tick <= low * (1 + 1e-9)));
  const last = ticks.findIndex((tick) => tick >= high * (1 - 1e-9));
  const inside = ticks.slice(first, Math.max(last, first + 1) + 1);
  if (inside.length <= most) return { low: inside[0], high: inside.at(-1), ticks: inside };
  return { low: inside[0], high: inside.at(-1), ticks: inside.filter((tick) => /^1(e|0*$)|^0?\.0*1$/.test(String(tick))) };
}

/** 1, 2, 5, 10, … within [low, high]. */
export function logTicksWithin(low, high) {
  return logTicks(low, high, Infinity).ticks.filter((tick) => tick >= low && tick <= high);
}

/** "M…L…" through points, broken where one is null. */
export function path(points) {
  let pen = "M";
  let drawn = "";
  for (const point of points) {
    if (point === null) {
      pen = "M";
    } else {
      drawn += `${pen}${point[0].toFixed(1)},${point[1].toFixed(1)}`;
      pen = "L";
    }
  }
  return drawn;
}

/** What a colour stands for, and the value it has. */
export function key(kind, name, value) {
  const made = document.createElement("span");
  const sign = document.createElement("i");
  sign.className = kind;
  sign.setAttribute("aria-hidden", "true");
  made.append(sign, name);
  if (value !== undefined) {
    const shown = document.createElement("span");
    shown.className = "value";
    shown.textContent = ` ${value}`;
    made.append(shown);
  }
  return made;
}
