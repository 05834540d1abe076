// Numbers as text, with their units.

const DIGITS = (value, scale) => (scale >= 99.95 ? 0 : scale >= 9.995 ? 1 : 2);

/** Three figures; 0 and whole numbers below 1000 as they are. */
export function number(value) {
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1000) return String(value);
  for (const [unit, scale] of [["G", 1e9], ["M", 1e6], ["k", 1e3]]) {
    if (size >= 0.9995 * scale) return `${(value / scale).toFixed(DIGITS(value, size / scale))} ${unit}`;
  }
  return value.toFixed(DIGITS(value, size));
}

/** Requests per second, which are means: one decimal where they are few. */
export const rate = (value) => (Number.isInteger(value) || value >= 99.95 ? count(Math.round(value)) : value.toFixed(1));

/** Three figures, microseconds at the finest. */
export const milliseconds = (value) => (value < 0.9995 ? value.toFixed(3) : value >= 999.5 ? count(Math.round(value)) : value.toFixed(DIGITS(value, value)));

/** A duration in the unit that suits it. */
export const duration = (ms) => (ms >= 999.5 ? `${(ms / 1e3).toFixed(DIGITS(0, ms / 1e3))} s` : `${milliseconds(ms)} ms`);

export const count = (value) => String(value).replace(/(?<!\.\d*)\B(?=(\d{3})+$)/g, ",");

export function bytes(value) {
  let unit = "B";
  for (const next of ["KiB", "MiB", "GiB", "TiB"]) {
    if (value < 1023.5) break;
    value /= 1024;
    unit = next;
  }
  return [unit === "B" ? String(value) : value.toFixed(DIGITS(0, value)), unit];
}

export const percent = (share) => `${(100 * share).toFixed(1)} %`;

/** Of seconds since the epoch, or a text in ISO 8601: the time of day where the page is looked at. */
export function clock(moment, seconds = true) {
  const date = new Date(typeof moment === "number" ? 1e3 * moment : moment);
  const parts = [date.getHours(), date.getMinutes(), ...(seconds ? [date.getSeconds()] : [])];
  return parts.map((part) => String(part).padStart(2, "0")).join(":");
}

/** An element of the page with attributes and children; text is never read as markup. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

export const byId = (id) => document.getElementById(id);
