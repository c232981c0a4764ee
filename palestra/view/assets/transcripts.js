// Browse episodes: pick a moment and an episode, read it token by token.

const ROLE_NAMES = { prompt: "prompt", sampled: "sampled", tool: "tool output" };
const SPECIAL = /^<[|/]?[\w|]+>$/;

function drawTranscripts(mount, data) {
  if (!data.episodes.length) {
    mount.append(el("p", { class: "about" }, "This run kept no transcripts."));
    return;
  }
  const state = { colouring: "role", spaces: false, episode: null, pinned: -1 };
  const moment = el("select", { id: "moment" });
  data.moments.forEach((name, index) => {
    const count = data.episodes.filter((episode) => episode.moment === index).length;
    if (count) moment.append(el("option", { value: index }, `${name} (${count})`));
  });
  const list = el("ol", { class: "episodes", "aria-label": "Episodes" });
  const reader = el("div", { class: "reader" });
  const show = (episode) => {
    if (state.episode !== episode) state.pinned = -1;
    state.episode = episode;
    for (const item of list.children) item.firstChild.toggleAttribute("data-current", item.episode === episode);
    reader.replaceChildren(...readerOf(episode, state, data));
  };
  const fill = () => {
    const items = data.episodes.filter((episode) => episode.moment === Number(moment.value)).map((episode) => entry(episode, show));
    list.replaceChildren(...items);
    show(items[0].episode);
  };
  moment.addEventListener("change", fill);
  const step = (by) => () => {
    const index = moment.selectedIndex + by;
    if (index < 0 || index >= moment.options.length) return;
    moment.selectedIndex = index;
    fill();
  };
  mount.append(
    el(
      "div",
      { class: "controls" },
      el("div", { class: "picker" }, el("label", { for: "moment" }, "Moment"), button("‹", "Earlier moment", step(-1)), moment, button("›", "Later moment", step(1))),
      colourings(state, () => show(state.episode)),
      spacesBox(state, () => show(state.episode)),
    ),
    el("div", { class: "browser" }, list, reader),
  );
  fill();
}

function button(text, label, action) {
  const node = el("button", { type: "button", "aria-label": label }, text);
  node.addEventListener("click", action);
  return node;
}

function colourings(state, changed) {
  const box = el("fieldset", {}, el("legend", {}, "Colour by"));
  for (const [name, { label }] of Object.entries(COLOURINGS)) {
    const input = el("input", { type: "radio", name: "colouring", value: name, ...(name === state.colouring && { checked: "" }) });
    input.addEventListener("change", () => {
      state.colouring = name;
      changed();
    });
    box.append(el("label", {}, input, label));
  }
  return box;
}

function spacesBox(state, changed) {
  const input = el("input", { type: "checkbox" });
  input.addEventListener("change", () => {
    state.spaces = input.checked;
    changed();
  });
  return el("label", {}, input, "show spaces");
}

function entry(episode, show) {
  const node = el(
    "button",
    { type: "button" },
    el("span", { class: "task" }, episode.task),
    el("span", { class: `reward ${episode.outcome === "scored" ? "" : "masked"}` }, episode.outcome === "scored" ? number(episode.reward) : episode.outcome),
  );
  node.addEventListener("click", () => show(episode));
  const item = el("li", {}, node);
  item.episode = episode;
  return item;
}

function readerOf(episode, state, data) {
  const about = [
    ["task", episode.task],
    ["group", episode.group],
    ["expected answer", episode.answer],
    ["reply", episode.reply],
    ["reward", number(episode.reward)],
    ["score", number(episode.score)],
    ["outcome", episode.outcome],
    ["stopped by", episode.stop_reason],
  ].map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)));
  const { key } = COLOURINGS[state.colouring];
  const legend = key(data.advantage_scale).map(([name, label]) => el("span", { class: `key ${name}` }, label));
  const detail = el("dl", { class: "detail", "aria-live": "polite" });
  const left = episode.tokens_left_out;
  return [
    el("dl", { class: "episode" }, ...about),
    el("div", { class: "detail-bar" }, detail, el("div", { class: "scale", "aria-hidden": "true" }, ...legend)),
    tokenText(episode, state, data, detail),
    left ? el("p", { class: "about" }, `${number(left)} more tokens are not shown.`) : "",
  ];
}

function tokenText(episode, state, data, detail) {
  const tokens = episode.tokens.map((packed) => unpack(packed, data.strings, data.roles));
  const { classOf } = COLOURINGS[state.colouring];
  const box = el("div", { class: `tokens by-${state.colouring}`, tabindex: "0", role: "group", "aria-label": "Tokens; the arrow keys move from one to the next" });
  const nodes = tokens.map((token, index) => {
    const special = SPECIAL.test(token.text) ? " special" : "";
    const node = el("span", { class: `token ${classOf(token, data.advantage_scale)}${special}` }, written(token.text, state.spaces));
    node.dataset.index = index;
    return node;
  });
  for (let start = 0; start < tokens.length; ) {
    let end = start;
    while (end < tokens.length && tokens[end].role === tokens[start].role) end += 1;
    const { role } = tokens[start];
    const text = el("div", { class: "text", dir: "ltr" }, ...nodes.slice(start, end));
    // The block ends the line already.
    nodes[end - 1].textContent = nodes[end - 1].textContent.replace(/\n$/, "");
    box.append(el("div", { class: `block ${role}` }, el("div", { class: "who" }, ROLE_NAMES[role]), text));
    start = end;
  }
  let pinned = state.pinned < 0 ? tokens.findIndex((token) => token.role === "sampled") : state.pinned;
  const tell = (index) => {
    const rows = index < 0 ? [] : knowledge(tokens[index], index);
    detail.replaceChildren(...rows.map(([name, value, note]) => el("div", {}, el("dt", {}, name), el("dd", {}, value, note ? el("small", {}, note) : ""))));
  };
  const pin = (index) => {
    nodes[pinned]?.removeAttribute("data-pinned");
    state.pinned = pinned = index;
    nodes[pinned]?.setAttribute("data-pinned", "");
    tell(pinned);
  };
  const indexOf = (event) => Number(event.target.closest(".token")?.dataset.index ?? -1);
  box.addEventListener("mouseover", (event) => tell(indexOf(event) < 0 ? pinned : indexOf(event)));
  box.addEventListener("mouseleave", () => tell(pinned));
  box.addEventListener("click", (event) => indexOf(event) >= 0 && pin(indexOf(event)));
  box.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    pin(Math.min(Math.max(pinned + by, 0), tokens.length - 1));
    nodes[pinned]?.scrollIntoView({ block: "nearest" });
  });
  pin(pinned);
  return box;
}
