"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { rows, texts, models, comparisons, demonstrations } = data;
  const find = (id) => document.getElementById(id);
  const browser = document.querySelector(".browser");
  const body = document.querySelector("#rows tbody");
  const narrow = matchMedia("(max-width: 900px)");
  const state = { words: "", model: "", verdict: "", category: "", sort: null, down: false, page: 0, size: 20, chosen: null };
  let shown = rows;

  // Elements are made from parts; strings become text, never markup.
  const make = (tag, options = {}, ...parts) => {
    const element = document.createElement(tag);
    for (const [key, value] of Object.entries(options)) {
      if (value !== null && value !== undefined) element.setAttribute(key, value);
    }
    element.append(...parts.filter((part) => part !== null));
    return element;
  };
  const of = (row) => comparisons[models[row.m].comparison];
  const number = (value, digits) => value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  const figure = (row) => (row.v === null ? "" : number(row.v, of(row).unit === "%" ? 0 : Number.isInteger(row.v) ? 0 : 2));
  const firstLine = (text) => text.trim().split("\n", 1)[0].slice(0, 200);
  const shortened = (text) => (firstLine(text).length > 80 ? `${firstLine(text).slice(0, 79).trimEnd()}…` : firstLine(text));
  const query = (row) => (row.q.length ? firstLine(texts[row.q[row.q.length - 1]]) : `prompt ${row.id}`);
  const mark = (row) => make("i", { class: `mark m${colours[row.m]}` });
  const colours = models.map((model, place) => (place - models.findIndex((other) => other.comparison === model.comparison)) % 8);

  const badge = (row) => {
    if (row.r !== null) return make("span", { class: "badge none", title: row.r }, "unscored");
    if (!row.o) return make("span", { class: "badge" }, figure(row) || "scored");
    const share = row.v > 0 && row.v < 100 && row.v !== 50 ? ` · ${figure(row)} %` : "";
    return make("span", { class: `badge ${row.o}`, title: `${of(row).label} ${row.v} %` }, row.o + share);
  };

  // Searching: every text is looked through once, rows only by the numbers of their texts.
  let lower = null;
  const textsOf = (row) => [...row.q, ...row.a, ...row.b, ...row.j.map((order) => order.w), row.x ?? null];
  const matching = (words) => {
    lower ??= texts.map((text) => text.toLowerCase());
    const hits = words.map((word) => lower.map((text) => text.includes(word)));
    return (row) => {
      const own = textsOf(row);
      const about = `${row.id} ${row.c ?? ""} ${models[row.m].name} ${row.r ?? ""}`.toLowerCase();
      return words.every((word, place) => own.some((number) => number !== null && hits[place][number]) || about.includes(word));
    };
  };
  const wordsOf = (text) => text.toLowerCase().split(/\s+/).filter(Boolean);
  const verdictOf = (row) => (row.r !== null ? "unscored" : row.o ?? "scored");

  const keys = {
    prompt: (row) => query(row).toLowerCase(),
    category: (row) => row.c ?? "",
    length: (row) => row.w ?? -1,
    value: (row) => row.v ?? -1,
  };

  const update = (keepChosen = false) => {
    const words = wordsOf(state.words);
    const isMatch = words.length ? matching(words) : () => true;
    shown = rows.filter(
      (row) =>
        (state.model === "" || row.m === Number(state.model)) &&
        (state.verdict === "" || verdictOf(row) === state.verdict) &&
        (state.category === "" || row.c === state.category) &&
        isMatch(row),
    );
    if (state.sort) {
      const key = keys[state.sort];
      const order = state.down ? -1 : 1;
      const keyed = shown.map((row) => [key(row), row]);
      keyed.sort(([a], [b]) => order * (a < b ? -1 : a > b ? 1 : 0));
      shown = keyed.map(([, row]) => row);
    }
    if (!keepChosen) state.page = 0;
    state.page = Math.max(0, Math.min(state.page, Math.ceil(shown.length / state.size) - 1));
    if (!keepChosen) {
      if (shown.length && !shown.includes(state.chosen)) state.chosen = shown[0];
      if (state.chosen) showDetail(state.chosen);
    }
    draw();
  };

  const columns = [
    ["prompt", "query and model"],
    ["category", "category"],
    ["length", "words"],
    ["value", "verdict"],
  ].filter(([name]) => (name !== "category" || rows.some((row) => row.c)) && (name !== "length" || rows.some((row) => row.w !== null)));

  const cells = {
    prompt: (row) => [
      make("div", { class: "query" }, query(row)),
      make("div", { class: "who" }, mark(row), part(row) + models[row.m].name),
    ],
    category: (row) => [row.c ?? ""],
    length: (row) => [row.w === null ? "" : number(row.w, 0)],
    value: (row) => [badge(row)],
  };
  const part = (row) => (turns.has(of(row)) ? `turn ${row.t} · ` : "") + (samples.has(of(row)) ? `sample ${row.s + 1} · ` : "");
  const turns = new Set(rows.filter((row) => row.t > 1).map(of));
  const samples = new Set(rows.filter((row) => row.s > 0).map(of));

  const draw = () => {
    const start = state.page * state.size;
    const page = shown.slice(start, start + state.size);
    body.replaceChildren(
      ...page.map((row) => {
        const line = make("tr", { "aria-selected": String(row === state.chosen) });
        line.append(...columns.map(([name]) => make("td", { class: `c-${name}` }, ...cells[name](row))));
        line.addEventListener("click", () => choose(row, true));
        return line;
      }),
    );
    if (!page.length) {
      body.append(make("tr", {}, make("td", { class: "nothing", colspan: columns.length }, "No answer fits. Clear the search or a filter.")));
    }
    find("place").textContent = shown.length
      ? `${number(start + 1, 0)}–${number(start + page.length, 0)} of ${number(shown.length, 0)}`
      : "0 answers";
    find("previous").disabled = state.page === 0;
    find("next").disabled = start + state.size >= shown.length;
    for (const head of document.querySelectorAll("#rows thead th")) {
      if (head.dataset.key === state.sort) head.setAttribute("aria-sort", state.down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    }
  };

  // The chosen answer.
  const marked = (text) => {
    const words = wordsOf(state.words);
    if (!words.length) return [text];
    const pattern = new RegExp(`(${words.map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("|")})`, "gi");
    return text.split(pattern).map((piece, place) => (place % 2 ? make("mark", {}, piece) : piece));
  };
  const block = (text, kind = "") => make("pre", { class: `text ${kind}` }, ...marked(text));
  const heading = (text, aside = "") => make("h3", {}, make("span", {}, text), make("span", { class: "n" }, aside));
  const wordsIn = (text) => `${number(text.split(/\s+/).filter(Boolean).length, 0)} words`;
  const unknown = (text) => make("p", { class: "unknown" }, text);

  const answer = (label, numbers) => {
    const parts = [heading(label, numbers.length ? wordsIn(texts[numbers[numbers.length - 1]]) : "")];
    return make("div", {}, ...parts, ...(numbers.length ? numbers.map((number) => block(texts[number], "answer")) : [unknown("not recorded")]));
  };
  const scoresOf = (row) => {
    const labels = of(row).labels;
    const pairs = Object.entries(row.sc).map(([name, score]) => [labels[name] ?? name, number(score, Number.isInteger(score) ? 0 : 2)]);
    if (of(row).pairwise && row.v !== null) pairs.unshift([of(row).label, `${number(row.v, 1)} %`]);
    return pairs.length ? make("dl", { class: "scores" }, ...pairs.map(([name, score]) => make("div", {}, make("dt", {}, name), make("dd", {}, score)))) : null;
  };
  const words = (row) =>
    row.j.flatMap((order) => {
      const first = order.f === null ? "" : order.f ? "the baseline was shown first" : "the model was shown first";
      const said = order.r !== null ? unknown(order.r) : null;
      const text = texts[order.w];
      return [heading(of(row).protocol === "metric" ? "Reference" : `The judge${of(row).judge ? `, ${of(row).judge}` : ""}`, first), said, text.trim() ? block(text) : said ? null : unknown("no words are recorded")];
    });
  const retrieved = (row) => {
    if (!row.d) return [];
    const tokens = row.n ? `prompt of ${number(row.n, 0)} tokens` : "";
    const items = row.d.map((id, place) => {
      const known = demonstrations[id];
      const title = known ? shortened(texts[known[0]]) : id;
      const inside = known ? [block(texts[known[0]]), block(texts[known[1]], "answer")] : [unknown("its text is not in this report: give the index")];
      return make("details", {}, make("summary", {}, `${place + 1}. ${title}`), ...inside);
    });
    return [heading(`Retrieved demonstrations (${row.d.length}), in prompt order`, tokens), ...(items.length ? items : [unknown("none")])];
  };
  const others = (row) => {
    const same = rows.filter((other) => other.k === row.k && other.t === row.t);
    if (same.length < 2) return [];
    const buttons = same.map((other) => {
      const button = make("button", { type: "button", "aria-current": other === row ? "true" : null }, mark(other), models[other.m].name + (samples.has(of(other)) ? ` · sample ${other.s + 1}` : ""), badge(other));
      button.addEventListener("click", () => choose(other, false));
      return button;
    });
    return [heading("All answers to this prompt"), make("div", { class: "others" }, ...buttons)];
  };

  const choose = (row, open) => {
    state.chosen = row;
    const place = shown.indexOf(row);
    if (place >= 0) state.page = Math.floor(place / state.size);
    draw();
    showDetail(row);
    if (open && narrow.matches) {
      document.body.classList.add("open");
      find("detail").focus();
    }
  };
  const showDetail = (row) => {
    const detail = find("detail");
    const close = make("button", { type: "button", class: "close", "aria-label": "Close" }, "×");
    close.addEventListener("click", shut);
    const facts = [`prompt ${row.id}`, row.c, row.t > 1 || turns.has(of(row)) ? `turn ${row.t}` : null, samples.has(of(row)) ? `sample ${row.s + 1}` : null];
    const top = make("div", { class: "top" }, badge(row), make("span", {}, facts.filter(Boolean).join(" · ")), close);
    const asked = row.q.map((number) => block(texts[number]));
    const compared = row.base !== null;
    detail.replaceChildren(
      ...[
        top,
        scoresOf(row),
        heading(row.q.length > 1 ? "Queries" : "Query"),
        ...(asked.length ? asked : [unknown("not recorded: give the completions, or the questions")]),
        make("div", { class: compared ? "answers" : "answers single" }, answer(models[row.m].name, row.a), compared ? answer(`${row.base} (baseline)`, row.b) : null),
        ...words(row),
        ...("x" in row && !row.a.length ? [make("details", {}, make("summary", {}, "What the judge was shown"), block(texts[row.x]))] : []),
        ...retrieved(row),
        ...others(row),
      ].filter((part) => part !== null),
    );
    detail.scrollTop = 0;
  };
  const shut = () => {
    document.body.classList.remove("open");
    find("rows").focus({ preventScroll: true });
  };

  // Controls.
  const fill = (id, name, options) => {
    const select = find(id);
    select.append(make("option", { value: "" }, "all"), ...options.map(([value, label]) => make("option", { value }, label)));
    select.parentElement.hidden = options.length < 2;
    select.addEventListener("change", () => ((state[name] = select.value), update()));
  };
  const repeated = comparisons.length > 1;
  fill("model", "model", models.map((model, place) => [place, model.name + (repeated ? ` (${comparisons[model.comparison].protocol})` : "")]));
  fill("verdict", "verdict", ["win", "tie", "lose", "scored", "unscored"].filter((value) => rows.some((row) => verdictOf(row) === value)).map((value) => [value, value]));
  fill("category", "category", [...new Set(rows.map((row) => row.c).filter(Boolean))].sort().map((value) => [value, value]));
  document.querySelector("#rows thead tr").append(
    ...columns.map(([name, label]) => {
      const button = make("button", { type: "button" }, label);
      button.addEventListener("click", () => {
        // Figures are first sorted from the highest, texts from A; the third click restores the prompts' order.
        const downFirst = name === "value" || name === "length";
        if (state.sort !== name) Object.assign(state, { sort: name, down: downFirst });
        else if (state.down === downFirst) state.down = !downFirst;
        else state.sort = null;
        update();
      });
      const head = make("th", { scope: "col", class: `c-${name}` }, button);
      head.dataset.key = name;
      return head;
    }),
  );
  let timer = 0;
  find("search").addEventListener("input", (event) => {
    clearTimeout(timer);
    timer = setTimeout(() => ((state.words = event.target.value), update()), 120);
  });
  document.querySelector(".filters").addEventListener("submit", (event) => event.preventDefault());
  const turnPage = (step) => ((state.page += step), update(true));
  find("previous").addEventListener("click", () => turnPage(-1));
  find("next").addEventListener("click", () => turnPage(1));
  find("size").addEventListener("change", (event) => ((state.size = Number(event.target.value)), update()));
  const step = (by) => {
    const place = shown.indexOf(state.chosen);
    const next = shown[place < 0 ? state.page * state.size : Math.max(0, Math.min(shown.length - 1, place + by))];
    if (next) choose(next, false);
  };
  document.addEventListener("keydown", (event) => {
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") {
      if (document.body.classList.contains("open")) shut();
      else if (event.target === find("search")) find("rows").focus({ preventScroll: true });
      return;
    }
    if (typing) {
      if (event.key === "ArrowDown" && event.target === find("search")) find("rows").focus({ preventScroll: true });
      return;
    }
    if (event.key === "/") {
      event.preventDefault();
      find("search").focus();
      find("search").select();
      return;
    }
    if (!event.target.closest("#rows, #detail")) return;
    const inList = event.target.closest("#rows");
    const moves = { ArrowDown: inList && (() => step(1)), ArrowUp: inList && (() => step(-1)), ArrowRight: () => turnPage(1), ArrowLeft: () => turnPage(-1) };
    if (event.key === "Enter" && event.target === find("rows") && state.chosen) choose(state.chosen, true);
    else if (moves[event.key]) moves[event.key]();
    else return;
    event.preventDefault();
  });

  browser.hidden = false;
  update();
})();
