// The console's script. Figures come as server-sent events, one a second; rates are differences between two of them.
// Whatever is text from outside goes through textContent: nothing here makes markup of strings.
"use strict";

const SPAN = 120; // seconds shown
const WINDOW = 15; // seconds that percentiles and shares are taken over
const POLICIES = ["phase", "fifo", "quota", "priority", "static-ratio", "core-split", "passthrough"];
const REASONS = {
  order: "an older operator goes first", decode_has_slack: "decode has slack, prefill uses it",
  decode_due: "a decode step is due", prefill_overdue: "an overdue prefill takes its turn",
  prefill_order: "another prefill goes first", quota_spent: "its dispatches of this round are spent",
  lower_priority: "something more important runs", phase_share: "the other phase is behind its part",
  tenant_share: "its tenant is ahead of its part", tenant_window: "its tenant has as much running as it may",
};
const SVG = "http://www.w3.org/2000/svg";
const history = [];

const byId = (id) => document.getElementById(id);
const node = (name, props = {}, children = []) => {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(props)) key.startsWith("data-") || key === "scope" ? made.setAttribute(key, value) : (made[key] = value);
  made.append(...children);
  return made;
};
const shape = (name, attributes) => {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
};
const set = (element, text) => { if (element.textContent !== text) element.textContent = text; };

// Figures for people.
const round = (value, digits) => value.toLocaleString("en", { maximumFractionDigits: digits, minimumFractionDigits: 0 });
const whole = (value) => Math.round(value).toLocaleString("en");
const ms = (seconds) => {
  const value = seconds * 1000;
  return value >= 10000 ? `${round(seconds, 1)} s` : `${round(value, value < 10 ? 1 : 0)} ms`;
};
const bytes = (value) => {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) { value /= 1024; unit += 1; }
  return `${round(value, value < 10 && unit > 0 ? 1 : 0)} ${units[unit]}`;
};
const percent = (part) => `${round(part * 100, part < 0.1 ? 1 : 0)} %`;
const compact = (value) => new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 }).format(value);

// A quantile between two states of a cumulative histogram; null without an answer in between.
function quantile(now, before, q) {
  if (!now || !now.length) return null;
  const start = new Map((before || []).map(([bound, count]) => [bound, count]));
  const counts = now.map(([bound, count]) => [bound, count - (start.get(bound) || 0)]);
  const all = counts[counts.length - 1][1];
  if (!(all > 0)) return null;
  const wanted = q * all;
  let [low, below] = [0, 0];
  for (const [bound, count] of counts) {
    if (count >= wanted) {
      if (bound === null) return low;
      return low + (bound - low) * ((wanted - below) / Math.max(count - below, 1e-9));
    }
    [low, below] = [bound, count];
  }
  return low;
}

function ago(seconds) {
  const from = history[history.length - 1].at_ms - seconds * 1000;
  return history.find((event) => event.at_ms >= from - 500) || history[0];
}

function spark(svg, values) {
  const [width, height] = [120, 40];
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("preserveAspectRatio", "none");
  const known = values.filter((v) => v !== null);
  if (known.length < 2) return svg.replaceChildren();
  const top = Math.max(...known) * 1.1 || 1;
  const start = SPAN - values.length;
  let [line, area, open, last] = ["", "", false, 0];
  values.forEach((value, i) => {
    if (value === null) { if (open) area += `L${last} ${height}Z`; open = false; return; }
    const x = ((start + i) * width) / (SPAN - 1);
    const y = height - 2 - (value / top) * (height - 4);
    line += `${open ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`;
    area += open ? `L${x.toFixed(1)} ${y.toFixed(1)}` : `M${x.toFixed(1)} ${height}L${x.toFixed(1)} ${y.toFixed(1)}`;
    [open, last] = [true, x.toFixed(1)];
  });
  if (open) area += `L${last} ${height}Z`;
  svg.replaceChildren(shape("path", { class: "area", d: area }), shape("path", { class: "line", d: line }));
}

const total = (object) => Object.values(object || {}).reduce((sum, value) => sum + value, 0);
const seconds = (now, before) => Math.max((now.at_ms - before.at_ms) / 1000, 0.001);

function tiles(now) {
  const before = ago(WINDOW);
  for (const [name, title] of [["ttft", "first tokens"], ["tpot", "answers"]]) {
    const [half, most] = [quantile(now[name], before[name], 0.5), quantile(now[name], before[name], 0.95)];
    set(byId(name), half === null ? "–" : ms(half));
    set(byId(`${name}-sub`), half === null ? `no ${title} in ${WINDOW} s` : `p95 ${ms(most)}, last ${WINDOW} s`);
    spark(byId(`${name}-spark`), history.map((event, i) => quantile(event[name], (history[Math.max(i - 5, 0)] || event)[name], 0.5)));
  }
  const rates = history.map((event, i) => {
    const earlier = history[Math.max(i - 3, 0)];
    return i === 0 ? null : Math.max(0, ((event.tokens.output || 0) - (earlier.tokens.output || 0)) / seconds(event, earlier));
  });
  const prompt = ((now.tokens.input || 0) - (before.tokens.input || 0)) / seconds(now, before);
  const rate = ((now.tokens.output || 0) - (before.tokens.output || 0)) / seconds(now, before);
  set(byId("rate"), history.length < 2 ? "–" : whole(Math.max(rate, 0)));
  set(byId("rate-sub"), `${whole(Math.max(prompt, 0))} prompt tokens/s`);
  spark(byId("rate-spark"), rates);
  const queue = now.gateway.queue;
  set(byId("queue"), whole(queue.requests));
  set(byId("queue-sub"), `${whole(now.phases.prefill || 0)} in prefill, ${whole(now.phases.decode || 0)} decoding`);
  spark(byId("queue-spark"), history.map((event) => event.gateway.queue.requests));
}

// A daemon's status in an event.
const of = (event, address) => event.daemons.find((d) => d.address === address)?.status || null;
const PHASES = { unknown: 0, prefill: 1, decode: 2, mixed: 3 };

function deviceTime(status) {
  const sum = [0, 0, 0, 0];
  for (const tenant of status.tenants) tenant.usage.device_ns.forEach((classes, phase) => classes.forEach((ns) => { sum[phase] += ns; }));
  return sum;
}

// What the device did between two statuses, parts of the time.
function between(now, before) {
  const span = now.uptime_ns - before.uptime_ns;
  if (!(span > 0)) return null;
  const [a, b] = [deviceTime(before), deviceTime(now)];
  const part = (phase) => Math.min(Math.max((b[phase] - a[phase]) / span, 0), 1);
  const held = (name) => {
    const [x, y] = [before, now].map((s) => s.phases.find((p) => p.phase === name)?.held_ns || 0);
    return Math.max((y - x) / span, 0);
  };
  return { prefill: part(PHASES.prefill), decode: part(PHASES.decode), other: part(PHASES.unknown) + part(PHASES.mixed), heldPrefill: held("prefill"), heldDecode: held("decode") };
}

function lanes(svg, address) {
  const width = Math.max(svg.clientWidth, 280);
  const height = Math.max(svg.clientHeight, 150);
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const [left, bottom, gap] = [64, 18, 14];
  const busy = (height - bottom - gap) * 0.7;
  const heldTop = busy + gap;
  const heldHeight = height - bottom - heldTop;
  const step = (width - left) / SPAN;
  const drawn = [];
  const rule = (y) => drawn.push(shape("line", { class: "rule", x1: left, x2: width, y1: y, y2: y }));
  const text = (x, y, words, anchor) => {
    const made = shape("text", { x, y, "text-anchor": anchor });
    made.textContent = words;
    drawn.push(made);
  };
  rule(0.5); rule(busy); rule(heldTop + heldHeight);
  text(left - 8, 11, "100 %", "end"); text(left - 8, busy, "device", "end"); text(left - 8, heldTop + heldHeight, "held back", "end");
  for (const back of [120, 90, 60, 30]) text(left + (SPAN - back) * step, height - 4, `−${back} s`, back === 120 ? "start" : "middle");
  text(width, height - 4, "now", "end");
  const parts = [];
  for (let i = 1; i < history.length; i += 1) {
    const [now, before] = [of(history[i], address), of(history[i - 1], address)];
    parts.push(now && before ? between(now, before) : null);
  }
  const most = Math.max(0.2, ...parts.filter(Boolean).map((p) => p.heldPrefill + p.heldDecode));
  parts.forEach((p, i) => {
    if (!p) return;
    const x = left + (SPAN - parts.length + i) * step;
    const column = (y, h, name) => { if (h > 0.2) drawn.push(shape("rect", { class: name, x: x.toFixed(2), y: (y - h).toFixed(2), width: Math.max(step - 0.6, 0.8).toFixed(2), height: h.toFixed(2) })); };
    let y = busy;
    for (const [value, name] of [[p.decode, "c-decode"], [p.prefill, "c-prefill"], [p.other, "c-other"]]) { column(y, value * busy, name); y -= value * busy; }
    const scale = heldHeight / most;
    column(heldTop + heldHeight, p.heldDecode * scale, "c-held-decode");
    column(heldTop + heldHeight - p.heldDecode * scale, p.heldPrefill * scale, "c-held-prefill");
  });
  svg.replaceChildren(...drawn);
  const last = parts.filter(Boolean).pop();
  if (last) svg.setAttribute("aria-label", `Device time, last two minutes. Now: prefill ${percent(last.prefill)}, decode ${percent(last.decode)}, other ${percent(last.other)}.`);
}

function bar(part, mark, name) {
  const svg = shape("svg", { viewBox: "0 0 100 12", preserveAspectRatio: "none", role: "img", "aria-label": name });
  svg.append(shape("rect", { class: "track", width: 100, height: 12, rx: 3 }), shape("rect", { class: "fill", width: Math.min(part, 1) * 100, height: 12, rx: 3 }));
  if (mark !== null) svg.append(shape("rect", { class: "mark", x: Math.min(mark * 100, 99.2), width: 0.8, height: 12 }));
  return svg;
}

const cell = (label, value, kind = "") => node("td", { className: kind, "data-label": label }, [value]);
const nothing = (columns, words) => node("tr", {}, [node("td", { className: "empty wide", colSpan: columns, textContent: words })]);

function shares(body, now, before) {
  const had = (status, name) => {
    const usage = status?.tenants.find((t) => t.tenant === name)?.usage;
    return usage ? usage.device_ns.flat().reduce((sum, ns) => sum + ns, 0) : 0;
  };
  const used = now.tenants.map((t) => Math.max(had(now, t.tenant) - had(before, t.tenant), 0));
  const all = used.reduce((sum, ns) => sum + ns, 0);
  const active = now.tenants.filter((t, i) => used[i] > 0 || t.in_flight > 0);
  const weights = active.reduce((sum, t) => sum + t.config.weight, 0);
  body.replaceChildren(...now.tenants.map((t, i) => {
    const part = all > 0 ? used[i] / all : 0;
    const mark = active.includes(t) && active.length > 1 ? t.config.weight / weights : null;
    const words = `${t.tenant} has ${percent(part)} of the device time${mark === null ? "" : `, ${percent(mark)} is its part`}`;
    const limit = t.config.memory_limit_bytes;
    return node("tr", {}, [
      node("td", { className: "who", textContent: t.tenant }),
      cell("Share of device time", node("div", { className: "bar" }, [bar(part, mark, words), node("span", { className: "n", textContent: percent(part) })]), "wide"),
      cell("Weight", String(t.config.weight) + (t.config.priority ? ` · priority ${t.config.priority}` : ""), "n"),
      cell("Memory", bytes(t.memory_bytes) + (limit === null ? "" : ` of ${bytes(limit)}`), "n"),
      cell("Processes", String(t.sessions), "n"),
    ]);
  }));
}

function holds(list, now, before) {
  const span = Math.max(now.uptime_ns - before.uptime_ns, 1);
  const rows = now.holds.map((hold) => {
    const earlier = before.holds.find((h) => h.reason === hold.reason);
    const open = now.held_now.filter((h) => h.reason === hold.reason).length;
    return { reason: hold.reason, ns: hold.total_ns - (earlier?.total_ns || 0), count: hold.count - (earlier?.count || 0), open };
  }).filter((row) => row.count > 0 || row.open > 0).sort((a, b) => b.ns - a.ns);
  if (!rows.length) return list.replaceChildren(node("li", {}, [node("span", { className: "empty", textContent: `nothing in ${WINDOW} s` })]));
  list.replaceChildren(...rows.map((row) => node("li", {}, [
    node("span", { textContent: REASONS[row.reason] || row.reason }),
    node("span", { className: "t", textContent: `${compact(row.count)} × ${ms(row.ns / 1e9 / Math.max(row.count, 1))} · ${percent(row.ns / span)}` }),
  ])));
}

const cards = new Map();

function card(address) {
  if (cards.has(address)) return cards.get(address);
  const made = byId("device-template").content.firstElementChild.cloneNode(true);
  const select = made.querySelector("select");
  select.append(...POLICIES.map((name) => node("option", { value: name, textContent: name })));
  made.querySelector("form").addEventListener("submit", (event) => { event.preventDefault(); change(address, event.currentTarget); });
  cards.set(address, made);
  byId("devices").append(made);
  return made;
}

async function change(address, form) {
  const answer = form.querySelector(".answer");
  const button = form.querySelector("button");
  const say = (words, kind) => { answer.className = `answer ${kind}`; set(answer, words); };
  const parameters = form.elements.parameters.value.trim().replace(/^:/, "");
  const policy = form.elements.policy.value + (parameters ? `:${parameters}` : "");
  button.disabled = true;
  try {
    const reply = await fetch("/console/policy", {
      method: "PUT",
      headers: { authorization: `Bearer ${form.elements.key.value.trim()}`, "content-type": "application/json" },
      body: JSON.stringify({ daemon: address, policy }),
    });
    const body = await reply.json().catch(() => ({}));
    reply.ok ? say(`${body.name} is in force`, "good") : say(String(body.error || reply.status), "bad");
  } catch (error) {
    say(`the gateway does not answer: ${error.message}`, "bad");
  }
  button.disabled = false;
}

function fact(name, value, part = null) {
  const dd = node("dd", { textContent: value });
  if (part !== null) {
    const svg = shape("svg", { class: "meter", viewBox: "0 0 100 6", preserveAspectRatio: "none", "aria-hidden": "true" });
    svg.append(shape("rect", { class: "track", width: 100, height: 6, rx: 2 }), shape("rect", { class: "fill", width: Math.min(Math.max(part, 0), 1) * 100, height: 6, rx: 2 }));
    dd.append(svg);
  }
  return node("div", {}, [node("dt", { textContent: name }), dd]);
}

function device(now, daemon) {
  const made = card(daemon.address);
  const status = daemon.status;
  const problem = made.querySelector(".problem");
  set(made.querySelector(".name"), `Device at ${daemon.address}`);
  problem.hidden = Boolean(status);
  for (const part of made.querySelectorAll(".device-body, .two, .switch")) part.hidden = !status;
  if (!status) {
    set(made.querySelector(".label"), "unreachable");
    return set(problem, `The daemon does not answer: ${daemon.error}`);
  }
  set(made.querySelector(".label"), status.device.label);
  // A daemon that was started again counts from nothing.
  const first = of(ago(WINDOW), daemon.address);
  const before = first && first.uptime_ns <= status.uptime_ns ? first : status;
  const recent = between(status, before);
  const memory = status.memory;
  const busy = recent ? recent.prefill + recent.decode + recent.other : 0;
  made.querySelector(".facts").replaceChildren(
    fact("Busy", recent ? percent(Math.min(busy, 1)) : "–", busy),
    fact("Memory", `${bytes(memory.used_bytes)} of ${bytes(memory.total_bytes)}`, memory.used_bytes / memory.total_bytes),
    fact("Operators", `${whole(status.in_flight)} running, ${whole(status.queued)} queued`),
    fact("Processes", whole(status.sessions.length)),
    fact("Policy", status.policy.name),
  );
  lanes(made.querySelector(".lanes"), daemon.address);
  shares(made.querySelector(".shares"), status, before);
  holds(made.querySelector(".holds"), status, before);
  set(made.querySelector(".policy"), status.policy.name);
  const form = made.querySelector("form");
  if (!form.dataset.filled) { form.elements.policy.value = status.policy.name; form.dataset.filled = "yes"; }
  for (const element of form.elements) if (element.name || element.type === "submit") element.toggleAttribute("disabled", !now.operators);
  if (!now.operators) set(form.querySelector(".answer"), "Changing it needs operator_key_sha256 in the gateway's [console].");
}

function tables(now) {
  const engines = now.gateway.engines;
  const outOf = (value, most) => `${compact(value)}${most === null || most === undefined ? "" : ` of ${compact(most)}`}`;
  byId("engines").replaceChildren(...(engines.length ? engines.map((e) => {
    const state = e.draining ? "draining" : e.open ? "open" : "closed";
    return node("tr", {}, [
      node("td", { className: "who", textContent: e.name }),
      cell("State", node("span", { className: `state ${state}`, textContent: state })),
      cell("Sequences", outOf(e.sequences, e.sequences_max), "n"),
      cell("Prompt tokens", outOf(e.prefill_tokens, e.prefill_tokens_max), "n"),
      cell("KV tokens", outOf(e.kv_tokens, e.kv_tokens_max), "n"),
      cell("Models", e.models.join(", ") || "–"),
    ]);
  }) : [nothing(6, "no engine is configured")]));
  byId("tenants").replaceChildren(...now.gateway.tenants.map((t) => node("tr", {}, [
    node("td", { className: "who", textContent: t.name || "everyone" }),
    cell("Weight", String(t.weight), "n"), cell("Running", whole(t.sequences), "n"), cell("Tokens served", compact(t.served_tokens), "n"),
  ])));
}

function show(now) {
  history.push(now);
  while (history.length > SPAN + 1) history.shift();
  tiles(now);
  const there = new Set(now.daemons.map((d) => d.address));
  for (const [address, made] of cards) if (!there.has(address)) { made.remove(); cards.delete(address); }
  now.daemons.forEach((daemon) => device(now, daemon));
  tables(now);
}

function live(state, words) {
  byId("live").className = `live ${state}`;
  set(byId("live-text"), words);
}

function listen() {
  const source = new EventSource("/console/events");
  source.onmessage = (message) => {
    show(JSON.parse(message.data));
    live("on", "live");
    document.documentElement.dataset.events = String(history.length);
  };
  source.onerror = () => {
    live("off", "no connection, trying again");
    if (source.readyState === EventSource.CLOSED) setTimeout(listen, 3000);
  };
}

let resizing = 0;
addEventListener("resize", () => {
  cancelAnimationFrame(resizing);
  resizing = requestAnimationFrame(() => { for (const [address, made] of cards) if (history.length) lanes(made.querySelector(".lanes"), address); });
});
listen();
