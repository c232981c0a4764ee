// All charts of the run, by stage, redrawn when the page's width or colours change.

const PRINT_WIDTHS = { wide: 330, narrow: 214 };

function drawTraining(mount, groups) {
  const drawings = [];
  groups.forEach((group, index) => {
    group.key = `group ${index}`; // uPlot looks this up in a plain object: never a name from the run
    mount.append(el("h3", {}, group.title));
    if (group.note) mount.append(el("p", { class: "about" }, group.note));
    mount.append(grid(group, group.charts, drawings));
    if (group.others.length) {
      const more = grid(group, group.others, drawings);
      mount.append(el("details", {}, el("summary", {}, "Other metrics"), more));
    }
    if (group.steps.length) mount.append(figures(group));
  });
  if (!groups.length) mount.append(el("p", { class: "about" }, "No step has been logged yet."));
  keepDrawn(drawings);
}

function grid(group, charts, drawings) {
  const box = el("div", { class: charts.length <= 4 ? "charts pairs" : "charts" });
  for (const chart of charts) {
    const parts = figure(chart);
    box.append(parts.node);
    if (chart.series.length) drawings.push({ parts, chart, group, plot: null, width: 0 });
    else parts.canvas.append(el("p", { class: "none" }, "None."));
  }
  return box;
}

function keepDrawn(drawings) {
  const redraw = (drawing, force) => {
    const box = drawing.parts.canvas;
    const wide = drawing.parts.node.matches(".pairs > *, .chart:nth-child(-n + 2)");
    const printing = "printing" in document.documentElement.dataset;
    const width = printing ? PRINT_WIDTHS[wide ? "wide" : "narrow"] : box.clientWidth;
    if (!width || (!force && width === drawing.width)) return;
    drawing.width = width;
    drawing.plot?.destroy();
    drawing.plot = draw(drawing.parts, drawing.chart, drawing.group.steps, drawing.group.key, width, wide ? 210 : 170);
  };
  const redrawAll = () => drawings.forEach((drawing) => redraw(drawing, true));
  const observer = new ResizeObserver((entries) => {
    for (const entry of entries) redraw(drawings.find((one) => one.parts.canvas === entry.target), false);
  });
  for (const drawing of drawings) {
    redraw(drawing, false);
    observer.observe(drawing.parts.canvas);
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawAll);
  const print = (printing) => () => {
    document.documentElement.toggleAttribute("data-printing", printing);
    redrawAll();
  };
  addEventListener("beforeprint", print(true));
  addEventListener("afterprint", print(false));
}

// The same figures as a table, for those who read better than they see; filled when opened.
function figures(group) {
  const box = el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `${group.title}: figures` });
  const details = el("details", {}, el("summary", {}, "The figures as a table"), box);
  details.addEventListener("toggle", () => {
    if (box.hasChildNodes()) return;
    const all = [...group.charts, ...group.others].flatMap((chart) =>
      chart.series.map((series) => ({ label: `${chart.title}: ${series.label}`, values: series.values })),
    );
    const head = el("tr", {}, ...["step", ...all.map((one) => one.label)].map((label) => el("th", { scope: "col" }, label)));
    const rows = group.steps.map((step, row) =>
      el("tr", {}, el("th", { scope: "row" }, number(step)), ...all.map((one) => el("td", {}, number(one.values[row])))),
    );
    box.append(el("table", { class: "figures" }, el("thead", {}, head), el("tbody", {}, ...rows)));
  });
  return details;
}
