"use strict";
// Everything is made of text nodes: what a model writes, or a pool holds, is never read as markup.

const $ = (id) => document.getElementById(id);
const number = new Intl.NumberFormat("en");
const percent = (part, whole) => (whole ? `${Math.round((100 * part) / whole)} %` : "–");
const seconds = (value) => (value == null ? "–" : value < 1 ? `${number.format(Math.round(value * 1e4) / 10)} ms` : `${value.toFixed(2)} s`);
const REASONS = {
  too_long: "too long",
  budget: "over budget",
  context: "context full",
  stopped: "after a misfit",
};
const KINDS = { special: "special tokens", preamble: "preamble", demonstration: "demonstrations", query: "conversation" };
const histories = new Map();
let running = null;

function make(tag, options = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

function headers() {
  const key = $("key").value.trim();
  return { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
}

async function failure(answer) {
  if (answer.status === 401) {
    $("key-field").hidden = false;
    $("key").focus();
  }
  const told = await answer.json().catch(() => null);
  const wait = answer.headers.get("Retry-After");
  return new Error((told?.error?.message ?? `status ${answer.status}`) + (wait ? ` (after ${wait} s)` : ""));
}

/* The recipes ------------------------------------------------------------------------------------------------- */

async function connect() {
  try {
    const answer = await fetch("v1/models", { headers: headers() });
    if (!answer.ok) throw await failure(answer);
    showModels((await answer.json()).data);
  } catch (error) {
    $("service").textContent = error.message;
    $("service").classList.add("bad");
  }
}

function showModels(models) {
  const [bare] = models;
  const recipes = models.filter((model) => model !== bare);
  // Initially one of each kind: no demonstrations, fixed ones, retrieved ones.
  const first = ["none", "fixed", "retrieved"].map((kind) => {
    const fitting = recipes.filter((model) => model.ragalign.demonstrations === kind);
    return fitting.find((model) => model.ragalign.recipe === bare.ragalign.recipe) ?? fitting[0];
  });
  const order = (model) => (first.includes(model) ? first.indexOf(model) : first.length);
  recipes.sort((a, b) => order(a) - order(b));
  const box = $("recipes");
  box.querySelectorAll(".chip").forEach((chip) => chip.remove());
  for (const model of recipes) {
    const { recipe, demonstrations } = model.ragalign;
    const input = make("input", { type: "checkbox", value: model.id, checked: first.includes(model) });
    input.dataset.recipe = recipe;
    input.dataset.kind = demonstrations;
    const kind = demonstrations === "none" ? "no demonstrations" : demonstrations;
    box.append(make("label", { className: "chip" }, input, make("span", {}, recipe), make("span", { className: "soft" }, kind)));
  }
  const context = bare.max_model_len;
  $("service").classList.remove("bad");
  $("service").textContent = bare.id + (context ? ` · ${number.format(context)} tokens of context` : "");
}

/* A prompt as a bar ------------------------------------------------------------------------------------------- */

function segmentsOf(told) {
  const special = told.tokens.special ? [{ kind: "special", n_tokens: told.tokens.special, text: "" }] : [];
  return [...special, ...told.pieces.filter((piece) => piece.n_tokens > 0)];
}

function nameOf(piece) {
  if (piece.kind !== "demonstration") return KINDS[piece.kind];
  return piece.instruction || piece.source_id || piece.id;
}

function describe(piece) {
  const score = piece.score == null ? "" : `, score ${piece.score.toFixed(3)}`;
  return `${nameOf(piece)}: ${number.format(piece.n_tokens)} tokens${score}`;
}

function proportion(element, part, whole) {
  element.style.width = `${(100 * part) / whole}%`;
  return element;
}

function promptView(told) {
  const segments = segmentsOf(told);
  const total = told.tokens.prompt;
  const detail = make("div", { className: "piece", hidden: true });
  const marks = new Map();
  let chosen = null;
  const choose = (piece) => {
    chosen = piece === chosen ? null : piece;
    for (const [part, elements] of marks) elements.forEach((element) => element.setAttribute("aria-pressed", String(part === chosen)));
    detail.hidden = chosen === null;
    if (chosen) {
      const text = chosen.kind === "special" ? "Such as the begin-of-text token; they have no text." : chosen.text;
      detail.replaceChildren(make("p", {}, describe(chosen)), make("pre", { tabIndex: 0 }, text));
    }
  };
  const mark = (piece, element) => {
    element.type = "button";
    element.setAttribute("aria-pressed", "false");
    element.addEventListener("click", () => choose(piece));
    marks.set(piece, [...(marks.get(piece) ?? []), element]);
    return element;
  };
  const bar = make("div", { className: "bar prompt", role: "group", "aria-label": `The prompt: ${number.format(total)} tokens` });
  let count = 0;
  for (const piece of segments) {
    const even = piece.kind === "demonstration" && ++count % 2 === 0 ? " even" : "";
    const button = make("button", { className: piece.kind + even + (piece.reused ? " reused" : ""), title: describe(piece), "aria-label": describe(piece) });
    button.tabIndex = bar.children.length ? -1 : 0;
    bar.append(proportion(mark(piece, button), piece.n_tokens, total));
  }
  bar.addEventListener("keydown", walk);

  const legend = make("ul", { className: "legend" });
  for (const [kind, name] of Object.entries(KINDS)) {
    const own = segments.filter((piece) => piece.kind === kind);
    const tokens = own.reduce((sum, piece) => sum + piece.n_tokens, 0);
    const label = kind === "demonstration" ? `${own.length} ${own.length === 1 ? "demonstration" : name}` : name;
    if (own.length) legend.append(make("li", {}, make("i", { className: kind }), `${label} ${number.format(tokens)}`));
  }
  const { context, budget, reserved } = told.tokens;
  const used = told.pieces.filter((piece) => piece.kind === "demonstration");
  const facts = [`${number.format(total)} tokens`];
  if (context) facts[0] += ` of ${number.format(context)}, ${number.format(reserved)} kept for the answer`;
  if (used.length) facts.push(`demonstrations fill ${percent(told.tokens.demonstrations, budget)} of their ${number.format(budget)}`);
  const reused = used.filter((piece) => piece.reused).length;
  if (reused) facts.push(`${reused} of them reused (striped), not computed`);
  if (told.demonstrations_kept) facts.push("kept from the turn before");
  const cache = make("div", { className: "cache" });
  return [
    make("h4", {}, "What the model saw"), bar, cache, legend, make("p", { className: "soft facts" }, facts.join(" · ")), detail,
    used.length ? tableOf("Demonstrations, as in the prompt", used, (piece) => mark(piece, make("button", {}, line(nameOf(piece))))) : null,
    told.dropped.length ? droppedView(told.dropped) : null,
  ];
}

function walk(event) {
  const step = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
  if (!step) return;
  event.preventDefault();
  const all = [...event.currentTarget.children];
  const next = Math.min(Math.max(all.indexOf(document.activeElement) + step, 0), all.length - 1);
  all.forEach((element, position) => (element.tabIndex = position === next ? 0 : -1));
  all[next].focus();
  if (all[next].getAttribute("aria-pressed") === "false") all[next].click();
}

const line = (text) => make("span", { className: "line", title: text }, text);

function tableOf(title, rows, first, reason = null) {
  const head = [title, "score", "tokens", reason && "why"].filter(Boolean);
  const table = make("table", {}, make("thead", {}, make("tr", {}, ...head.map((name) => make("th", { scope: "col" }, name)))));
  const body = table.createTBody();
  for (const row of rows) {
    const cells = [first(row), row.score == null ? "fixed" : row.score.toFixed(3), number.format(row.n_tokens), reason && reason(row)];
    body.append(make("tr", {}, ...cells.filter(Boolean).map((cell) => make("td", {}, cell))));
  }
  return make("div", { className: "table" }, table);
}

function droppedView(dropped) {
  const table = tableOf("Not used", dropped, (entry) => line(nameOf({ kind: "demonstration", ...entry })), (entry) => REASONS[entry.reason] ?? entry.reason);
  return make("details", { className: "dropped" }, make("summary", {}, `${dropped.length} retrieved, but not used`), table);
}

function cacheView(n_cached, n_reused, total) {
  if (n_cached == null) return [make("p", { className: "soft" }, "The engine does not report cached tokens.")];
  const bar = make("div", { className: "bar thin", role: "img", "aria-label": `${percent(n_cached, total)} of the prompt came from the cache` });
  if (n_cached) bar.append(proportion(make("span", { className: "cached" }), n_cached, total));
  if (n_reused) bar.append(proportion(make("span", { className: "cached reused" }), n_reused, total));
  const n_prefilled = total - n_cached - n_reused;
  bar.append(proportion(make("span", { className: "prefilled" }), n_prefilled, total));
  const entry = (kind, tokens, name = kind) => make("li", {}, make("i", { className: kind }), `${number.format(tokens)} ${name}`);
  return [bar, make("ul", { className: "legend" }, entry("cached", n_cached), ...(n_reused ? [entry("cached reused", n_reused, "reused")] : []), entry("prefilled", n_prefilled))];
}

function timingsView(told) {
  const { queue, retrieval, packing, first_token, total } = told;
  const before = queue + retrieval + packing;
  const parts = [["queue", queue], ["retrieval", retrieval], ["packing", packing], ["to the first token", Math.max((first_token ?? total) - before, 0)], ["answer", Math.max(total - (first_token ?? total), 0)]];
  const bar = make("div", { className: "bar thin", role: "img", "aria-label": `${seconds(total)} in all` });
  const legend = make("ul", { className: "legend timings" });
  parts.forEach(([name, value], position) => {
    bar.append(proportion(make("span", { className: `p${position}` }), value, total));
    legend.append(make("li", {}, make("i", { className: `p${position}` }), `${name} ${seconds(value)}`));
  });
  return [make("h4", {}, `Time: ${seconds(total)}`), bar, legend];
}

/* Asking ------------------------------------------------------------------------------------------------------ */

async function* eventsOf(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    held += value;
    const events = held.split("\n\n");
    held = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

function requestBody(model, messages) {
  const value = (id) => ($(id).value === "" ? undefined : Number($(id).value));
  return {
    model, messages, stream: true, stream_options: { include_usage: true },
    temperature: value("temperature"), max_tokens: value("max_tokens"), seed: value("seed"),
    ragalign: { explain: true, max_demonstrations: value("max_demonstrations"), max_tokens: value("budget") },
  };
}

async function ask(choice, question, column, signal) {
  const model = choice.value;
  const history = histories.get(model) ?? [];
  const system = $("system").value.trim();
  const messages = [...(system ? [{ role: "system", content: system }] : []), ...history, { role: "user", content: question }];
  const status = make("p", { className: "soft", role: "status" }, "waiting …");
  const text = make("div", { className: "answer running", tabIndex: 0 });
  const seen = make("div", { className: "seen" });
  const timings = make("div");
  column.append(make("div", { className: "head" }, make("h3", {}, choice.dataset.recipe), status), text, seen, timings);
  let said = "", prompt = 0, reason = null;
  try {
    const answer = await fetch("v1/chat/completions", { method: "POST", headers: headers(), body: JSON.stringify(requestBody(model, messages)), signal });
    if (!answer.ok) throw await failure(answer);
    for await (const event of eventsOf(answer)) {
      if (event.error) throw new Error(event.error.message);
      const told = event.ragalign;
      if (told?.pieces) {
        prompt = told.tokens.prompt;
        seen.append(...promptView(told).filter(Boolean));
        status.textContent = "answering …";
      }
      if (told?.seconds) {
        seen.querySelector(".cache").append(...cacheView(told.n_cached_tokens, told.n_reused_tokens ?? 0, prompt));
        timings.append(...timingsView(told.seconds));
      }
      for (const part of event.choices) {
        if (part.delta.content) text.append((said += part.delta.content, part.delta.content));
        reason = part.finish_reason ?? reason;
      }
      if (event.usage) {
        const n = event.usage.completion_tokens; // 0 where the engine does not count
        status.textContent = (n ? `${number.format(n)} tokens, ` : "") + (reason === "length" ? "cut at the limit" : "finished");
      }
    }
    if (reason === null) throw new Error("the answer broke off");
  } catch (error) {
    const stopped = error.name === "AbortError";
    status.textContent = stopped ? "stopped" : error instanceof TypeError ? "the service cannot be reached" : error.message;
    status.classList.toggle("bad", !stopped);
  }
  text.classList.remove("running");
  if (said) histories.set(model, [...history, { role: "user", content: question }, { role: "assistant", content: said }]);
}

async function send() {
  const choices = [...$("recipes").querySelectorAll("input:checked")];
  const question = $("message").value.trim();
  if (running || !question || !$("ask").reportValidity()) return;
  if (!choices.length) {
    $("recipes").querySelector("input")?.focus();
    return;
  }
  running = new AbortController();
  $("send").disabled = true;
  $("stop").disabled = false;
  const columns = choices.map((choice) => make("article", { className: "card", "aria-label": choice.dataset.recipe }));
  $("rounds").prepend(make("section", {}, make("h2", {}, question), make("div", { className: "columns" }, ...columns)));
  $("message").value = "";
  await Promise.all(choices.map((choice, position) => ask(choice, question, columns[position], running.signal)));
  running = null;
  $("send").disabled = false;
  $("stop").disabled = true;
  $("new").disabled = false;
}

$("ask").addEventListener("submit", (event) => { event.preventDefault(); send(); });
$("stop").addEventListener("click", () => running?.abort());
$("new").addEventListener("click", () => {
  running?.abort();
  histories.clear();
  $("rounds").replaceChildren();
  $("new").disabled = true;
  $("message").focus();
});
$("message").addEventListener("keydown", (event) => {
  // While an input method composes, Enter is its own.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
  const typing = /^(INPUT|TEXTAREA)$/.test(event.target.tagName);
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    $("message").focus();
  }
});
$("key").addEventListener("change", connect);
connect();
