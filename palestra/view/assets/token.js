// One token: how it looks in each colouring, and what is known about it.

// Upper bounds of the colour steps; the last step has none.
const SURPRISE = [0.1, 0.5, 1.5, 3];
const MISMATCH = [1e-5, 1e-4, 1e-3, 1e-2];
const step = (bounds, value) => {
  const found = bounds.findIndex((bound) => value < bound);
  return found < 0 ? bounds.length : found;
};

const COLOURINGS = {
  role: { label: "role", classOf: () => "", key: () => [] },
  logprob: {
    label: "log-probability",
    classOf: (token) => (token.logprob === null ? "" : `q${step(SURPRISE, -token.logprob)}`),
    key: () => scale("q", SURPRISE.map((bound) => number(-bound)), "≥ ", "< "),
  },
  advantage: {
    label: "advantage",
    classOf: (token, most) => {
      if (token.advantage === null || !most) return "";
      const size = Math.ceil((Math.abs(token.advantage) / most) * 3 - 1e-9);
      return size === 0 ? "a0" : `${token.advantage < 0 ? "n" : "p"}${size}`;
    },
    key: (most) =>
      most
        ? [["n3", number(-most)], ["n2", ""], ["n1", ""], ["a0", "0"], ["p1", ""], ["p2", ""], ["p3", `+${number(most)}`]]
        : [["", "no advantages were recorded"]],
  },
  mismatch: {
    label: "mismatch",
    classOf: (token) =>
      token.logprob === null || token.trainer === null ? "" : `q${step(MISMATCH, Math.abs(token.trainer - token.logprob))}`,
    key: () => scale("q", MISMATCH.map(number), "< ", "≥ "),
  },
};

function scale(prefix, bounds, inside, beyond) {
  const steps = bounds.map((bound, index) => [`${prefix}${index}`, `${inside}${bound}`]);
  return [...steps, [`${prefix}${bounds.length}`, `${beyond}${bounds[bounds.length - 1]}`]];
}

function unpack(packed, strings, roles) {
  const [text, role, logprob = null, trainer = null, advantage = null] = packed;
  return { text: strings[text], role: roles[role], logprob, trainer, advantage };
}

// What is written on the page: line ends and tabs get a sign, spaces if asked for.
function written(text, spaces) {
  const marked = text.replaceAll("\n", "↵\n").replaceAll("\t", "⇥\t");
  if (marked === "") return "∅";
  return spaces ? marked.replaceAll(" ", "·") : marked;
}

const quoted = (text) => `“${text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "·")}”`;

function knowledge(token, index) {
  const gap = token.logprob === null || token.trainer === null ? null : token.trainer - token.logprob;
  const likely = token.logprob === null ? "" : `p = ${number(Math.exp(token.logprob))}`;
  const signed = (value) => (value > 0 ? `+${number(value)}` : number(value));
  return [
    ["token", quoted(token.text)],
    ["role", `${{ tool: "tool output" }[token.role] ?? token.role} · ${index + 1}`],
    ["log-probability", number(token.logprob), likely],
    ["trainer’s", number(token.trainer)],
    ["difference", signed(gap)],
    ["advantage", signed(token.advantage)],
  ];
}
