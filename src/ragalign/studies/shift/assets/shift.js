"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const find = (id) => document.getElementById(id);
  // Build elements from parts; strings become text, never markup.
  const make = (tag, options = {}, ...parts) => {
    const element = document.createElement(tag);
    for (const [key, value] of Object.entries(options)) if (value !== null) element.setAttribute(key, value);
    element.append(...parts);
    return element;
  };
  const kind = (rank) => (rank === 1 ? "unshifted" : rank <= 3 ? "marginal" : "shifted");
  const percent = (logprob) => {
    const share = 100 * Math.exp(logprob);
    return share >= 0.095 ? `${share.toFixed(1)} %` : share > 0 ? "< 0.1 %" : "0 %";
  };
  // Make white space visible.
  const visible = (text) => (text === "" ? "(part of a character)" : text.replaceAll("\n", "↵").replaceAll(" ", "·").replaceAll("\t", "⇥"));
  const state = { answer: 0, context: 0, chosen: null };
  const tip = find("tip");
  const box = find("tokens");
  const token = (text) => make("code", { class: "token" }, visible(text));

  const places = () => data.answers[state.answer].places[state.context];

  const draw = () => {
    const answer = data.answers[state.answer];
    const read = places();
    hide();
    find("asked").textContent = answer.q;
    const counts = { unshifted: 0, marginal: 0, shifted: 0, elsewhere: 0 };
    box.replaceChildren(
      ...answer.t.map((text, number) => {
        const place = read ? read[number] : null;
        const name = place === null ? "elsewhere" : kind(place[0]);
        counts[name] += 1;
        const shown = text.replace(/\n/g, "↵\n");
        const element = make("span", { class: name, "data-n": number });
        for (const part of shown.split(/(↵)/)) element.append(part === "↵" ? make("i", { class: "gap" }, part) : part);
        return element;
      }),
    );
    const total = answer.t.length - counts.elsewhere;
    const words = ["unshifted", "marginal", "shifted"].map((name) => `${counts[name]} ${name}${total ? ` (${Math.round((100 * counts[name]) / total)} %)` : ""}`);
    if (counts.elsewhere) words.push(`${counts.elsewhere} not compared`);
    find("counts").textContent = read ? `${answer.t.length} tokens: ${words.join(", ")}` : "With this context, the answer did not fit into the base model's context length.";
  };

  const show = (element) => {
    hide();
    const number = Number(element.dataset.n);
    const answer = data.answers[state.answer];
    const place = places() ? places()[number] : null;
    element.setAttribute("aria-current", "true");
    state.chosen = element;
    const head = make("h4", {}, token(answer.t[number]));
    if (place === null) {
      tip.replaceChildren(head, make("p", {}, "Not compared: the base model splits the text differently here."));
    } else {
      const [rank, logprob, kl, best] = place;
      const divergence = kl === null ? "" : ` · KL ${kl.toFixed(2)} nats`;
      const rows = best.map(([text, value]) => make("tr", { class: text === answer.t[number] ? "chosen" : "" }, make("td", {}, token(text)), make("td", {}, percent(value))));
      tip.replaceChildren(
        head,
        make("p", {}, `${kind(rank)} · ${answer.c[number]} · rank ${rank.toLocaleString("en")} of the base model, ${percent(logprob)}${divergence} · aligned model ${percent(answer.p[number])}`),
        make("table", {}, make("tbody", {}, ...rows)),
      );
    }
    tip.hidden = false;
    const at = element.getClientRects()[0] ?? element.getBoundingClientRect();
    const left = Math.max(12, Math.min(at.left, document.documentElement.clientWidth - tip.offsetWidth - 12));
    const below = at.bottom + 8;
    const top = below + tip.offsetHeight > innerHeight && at.top > tip.offsetHeight + 8 ? at.top - tip.offsetHeight - 8 : below;
    tip.style.left = `${left + scrollX}px`;
    tip.style.top = `${top + scrollY}px`;
  };
  const hide = () => {
    if (state.chosen) state.chosen.removeAttribute("aria-current");
    state.chosen = null;
    tip.hidden = true;
  };

  const option = (text, value) => make("option", { value }, text.length > 90 ? `${text.slice(0, 89)}…` : text);
  find("context").append(...data.contexts.map((name, number) => option(name, number)));
  find("answer").append(...data.answers.map((answer, number) => option(`${number + 1}. ${answer.q.replace(/\s+/g, " ")}`, number)));
  find("context").addEventListener("change", (event) => ((state.context = Number(event.target.value)), draw()));
  find("answer").addEventListener("change", (event) => ((state.answer = Number(event.target.value)), draw()));
  const target = (event) => event.target.closest("#tokens [data-n]");
  box.addEventListener("pointerover", (event) => target(event) && show(target(event)));
  box.addEventListener("click", (event) => target(event) && show(target(event)));
  box.addEventListener("pointerleave", hide);
  document.addEventListener("click", (event) => target(event) || hide());
  box.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") hide();
    if (!step || !box.children.length) return;
    event.preventDefault();
    const now = state.chosen ? Number(state.chosen.dataset.n) : step > 0 ? -1 : box.children.length;
    show(box.children[Math.max(0, Math.min(box.children.length - 1, now + step))]);
  });
  if (data.answers.length) {
    document.querySelector(".browser").hidden = false;
    draw();
  }
})();
