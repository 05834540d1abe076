// Asks the service once a second, and shows what it says.

import { byId, bytes, clock, count, duration, element, milliseconds, percent, rate } from "./words.js";
import { draw, rows } from "./times.js";
import { show as showPortfolio } from "./pareto.js";
import { know } from "./ask.js";

const KEPT_S = 900;
const MEAN_S = 5;
const EVERY_MS = 1000;
const PATIENCE_MS = 5000;
let last = null; // {id, next, portfolio} of the last answer
let ahead = 0; // seconds that the node's clock is ahead of the one here
let gone = null; // since when nothing was answered

async function look() {
  const known = last && `?since=${last.next}`;
  const response = await fetch(`live.json${known ?? ""}`, { cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
  if (!response.ok) throw new Error(`it answers ${response.status}`);
  const { status, history, classes } = await response.json();
  if (last && (history.id !== last.id || status.portfolio !== last.portfolio)) {
    last = null; // started anew, or another portfolio, whose classes are to be known
    return look();
  }
  if (classes) know(classes);
  last = { id: history.id, next: history.next, portfolio: status.portfolio };
  remember(history);
  return status;
}

function remember(history) {
  const end = history.begin + history.arrived.length;
  ahead = end - Date.now() / 1e3;
  // What is told again, or by a clock that was set back, counts instead of what was known.
  while (rows.length && history.arrived.length && rows.at(-1).t > history.begin - 0.5) rows.pop();
  history.arrived.forEach((arrived, i) => {
    const causes = Object.fromEntries(Object.entries(history.refused).map(([cause, times]) => [cause, times[i]]));
    const refused = Object.values(causes).reduce((sum, times) => sum + times, 0);
    rows.push({ t: history.begin + i, arrived, refused, causes, answered: history.answered[i], p50: history.p50_ms[i], p99: history.p99_ms[i], queue: history.queue[i], variant: history.variant[i] });
  });
  while (rows.length && rows[0].t < end - KEPT_S) rows.shift();
}

const set = (id, ...content) => byId(id).replaceChildren(...content);
const figure = (id, value, unit) => set(id, value, ...(unit ? [" ", element("small", {}, unit)] : []));
const mean = (of) => rows.slice(-MEAN_S).reduce((sum, row) => sum + of(row), 0) / Math.max(1, Math.min(rows.length, MEAN_S));

function show(status) {
  document.title = `${status.model} – shifter`;
  set("model", status.model);
  set("words", inWords(status));
  figure("rate-now", rate(mean((row) => row.arrived)), "/s");
  const refused = mean((row) => row.refused);
  set("rate-more", refused ? `${rate(refused)} /s refused` : "none refused");
  const { p50, p99, requests } = status.latency_ms;
  const objective = status.policy.objective_ms;
  figure("latency-now", p99 === null ? "–" : milliseconds(p99), p99 === null ? "" : "ms");
  const goal = objective === null ? "" : `, objective ${milliseconds(objective)} ms`;
  set("latency-more", p50 === null ? `none answered yet${goal}` : `p50 ${milliseconds(p50)} ms${goal}`);
  set("latency-of", requests ? `Latency, p99 of ${count(requests)}` : "Latency, p99");
  figure("queue-now", count(status.load.queue));
  set("queue-more", `of ${count(status.load.max_queue)} at most`);
  const active = status.variants.find((variant) => variant.active);
  figure("active-now", status.active);
  set("active-more", active ? `${percent(active.validation_accuracy)} accurate` : "");
  showMemory(status.memory);
  showSwitches(status);
  showPortfolio(status.variants);
  const answered = Object.values(status.answered).reduce((sum, times) => sum + times, 0);
  set("total", `${count(answered)} requests answered, ${count(Object.values(status.refused).reduce((sum, times) => sum + times, 0))} refused since the start.`);
}

function showMemory({ taken_bytes: taken, budget_bytes: budget }) {
  figure("memory-now", ...bytes(taken));
  set("memory-more", budget === null ? "package and engines, no budget" : `of ${bytes(budget).join(" ")} budget`);
  const meter = byId("memory-meter");
  meter.hidden = budget === null;
  if (budget !== null) {
    meter.max = budget;
    meter.value = taken;
    meter.textContent = percent(taken / budget);
  }
}

const ENGINES = { onnxruntime: "ONNX Runtime", torch: "torch" };
const POLICIES = {
  slo: (policy) => `as accurate as ${milliseconds(policy.objective_ms)} ms allow (slo)`,
  trend: () => "a size up while it keeps up with the load, a size down when it does not (trend)",
  fixed: (policy) => `${policy.variant}, whatever the load (fixed)`,
};

function inWords({ engine, policy, active, reason, since, refresh }) {
  const threads = engine.threads === 1 ? "one thread" : `${engine.threads} threads`;
  const absent = Object.entries(engine.absent).map(([name, why]) => ` Without ${name}: ${why}.`).join("");
  const chosen = POLICIES[policy.name]?.(policy) ?? policy.name;
  const error = refresh.error ? ` A newer portfolio was not taken over: ${refresh.error}.` : "";
  return `${ENGINES[engine.name] ?? engine.name} on ${engine.providers.map((name) => (name === "cpu" ? "the CPU" : name)).join(", ")}, ${threads}; ${chosen}. ${active} serves: ${reason}. This portfolio serves since ${clock(since)}.${absent}${error}`;
}

let shownSwitches = "";

function showSwitches({ switches }) {
  const now = JSON.stringify(switches);
  if (now === shownSwitches) return; // whoever reads or scrolls is left alone
  shownSwitches = now;
  const items = [...switches].reverse().map((each) => {
    const what = element("div", { class: "what" }, element("time", { datetime: each.at }, clock(each.at)), element("b", {}, `${each.from} → ${each.to}`));
    what.append(element("span", { class: "took" }, each.error ? "failed" : `${duration(each.ms)}${each.ahead ? ", inflated ahead" : ""}`));
    const why = each.error ? `${each.reason}; ${each.error}` : each.reason;
    return element("li", each.error ? { class: "failed" } : {}, what, element("small", {}, why));
  });
  set("switches", ...(items.length ? items : [element("li", { class: "none" }, "none yet")]));
}

function tellState(state, text) {
  const line = byId("state");
  if (line.dataset.state !== state) line.dataset.state = state;
  if (line.textContent !== text) line.textContent = text;
}

/** What the service says, or null, having told that it says nothing. */
async function listen() {
  try {
    const status = await look();
    gone = null;
    tellState("live", "live");
    return status;
  } catch (error) {
    gone ??= clock(Date.now() / 1e3);
    const why = error instanceof TypeError || error.name === "TimeoutError" ? "" : ` (${error.message})`;
    tellState("gone", `no answer since ${gone}${why}; asking again …`);
    return null;
  }
}

async function turn() {
  try {
    const status = await listen();
    if (status) show(status);
    draw(Date.now() / 1e3 + ahead, status);
    // Nobody looks, nobody asks.
    if (document.hidden) await new Promise((seen) => document.addEventListener("visibilitychange", seen, { once: true }));
  } finally {
    setTimeout(turn, EVERY_MS);
  }
}

turn();
