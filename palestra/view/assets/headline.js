// The top of the page: what came out, with its intervals, and what to be wary of.

function drawHeadline(mount, headline, notices) {
  const state = headline.finished ? [] : [el("span", { class: "badge" }, "unfinished")];
  mount.append(
    el("p", { class: "overline" }, "palestra report", " · ", headline.run, ...state),
    el("h1", {}, headline.env_id),
    el("p", { class: "sentence" }, headline.sentence),
  );
  if (headline.measures.length) mount.append(dumbbell(headline.measures));
  const facts = headline.facts.map((fact) =>
    el(
      "div",
      fact.alarm ? { class: "alarm" } : {},
      el("dt", {}, fact.label),
      el("dd", {}, fact.value, fact.note ? el("small", {}, fact.note) : ""),
    ),
  );
  mount.append(el("dl", { class: "facts" }, ...facts));
  for (const alarm of headline.alarms) {
    mount.append(el("p", { class: "notice alarm", role: "alert" }, el("strong", {}, "Attention. "), alarm));
  }
  for (const notice of notices) mount.append(el("p", { class: "notice" }, notice));
}

const interval = (measure) =>
  measure.low === null || measure.high === null ? "" : `${percent(measure.low)} to ${percent(measure.high)}`;

// Positions in percent let the picture take any width while its text keeps its size.
function dumbbell(measures) {
  const x = (share) => `${Math.min(Math.max(share, 0), 1) * 100}%`;
  const rowHeight = 30;
  const bottom = measures.length * rowHeight + 6;
  const picture = svg("svg", { height: bottom + 22, "aria-hidden": "true", class: "intervals" });
  for (const tick of [0, 0.25, 0.5, 0.75, 1]) {
    const anchor = tick === 0 ? "start" : tick === 1 ? "end" : "middle";
    picture.append(
      svg("line", { x1: x(tick), x2: x(tick), y1: 0, y2: bottom, class: "grid" }),
      svg("text", { x: x(tick), y: bottom + 17, "text-anchor": anchor }, `${tick * 100}%`),
    );
  }
  const middle = (index) => rowHeight * index + rowHeight / 2 + 3;
  if (measures.length === 2) {
    const [first, second] = measures.map((measure) => x(measure.value));
    picture.append(
      svg("line", { x1: first, x2: first, y1: middle(0), y2: middle(1), class: "link" }),
      svg("line", { x1: first, x2: second, y1: middle(1), y2: middle(1), class: "link" }),
    );
  }
  measures.forEach((measure, index) => {
    const mark = svg("g", { class: index === measures.length - 1 ? "mark last" : "mark" });
    const y = middle(index);
    if (interval(measure)) {
      mark.append(svg("line", { x1: x(measure.low), x2: x(measure.high), y1: y, y2: y, class: "whisker" }));
    }
    mark.append(svg("circle", { cx: x(measure.value), cy: y, r: 6 }));
    picture.append(mark);
  });
  const labels = measures.map((measure) =>
    el(
      "div",
      {},
      el("span", { class: "when" }, measure.label),
      " ",
      el("b", {}, percent(measure.value)),
      " ",
      el("span", { class: "range" }, interval(measure)),
    ),
  );
  return el(
    "figure",
    { class: "dumbbell" },
    el("div", { class: "labels" }, ...labels),
    picture,
    el("figcaption", {}, "Share of held-out tasks solved, with 95% intervals."),
  );
}
