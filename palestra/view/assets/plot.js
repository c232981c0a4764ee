// One chart: a canvas by uPlot, its legend, and a sentence for those who cannot see it.

const STACK_LIMIT = 8;
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const seriesColour = (index) => colour(`--series-${index % STACK_LIMIT}`);
const DASHES = [[], [6, 4], [2, 3], [8, 3, 2, 3]]; // lines differ in more than colour

function figure(chart) {
  const entries = chart.series.map((series, index) => {
    const value = el("output", {});
    const swatch = el("i", { class: `swatch ${chart.stack ? "area" : "line"} series-${index % STACK_LIMIT}` });
    return { value, node: el("li", {}, swatch, el("span", {}, series.label), value) };
  });
  const at = el("span", { class: "at" });
  const canvas = el("div", { class: "canvas" });
  const node = el(
    "figure",
    { class: "chart" },
    el("figcaption", {}, el("h4", {}, chart.title), el("span", { class: "unit" }, chart.unit), at),
    el("ul", { class: "legend" }, ...entries.map((entry) => entry.node)),
    canvas,
    chart.about ? el("p", { class: "about" }, chart.about) : "",
  );
  return { node, canvas, at, values: entries.map((entry) => entry.value) };
}

// Rows where every series is empty are left out, so that sparse measurements join up.
function columns(chart, steps) {
  const kept = steps.map((_, row) => row).filter((row) => chart.series.some((one) => one.values[row] !== null));
  const pick = (values) => (values ? kept.map((row) => values[row]) : null);
  return {
    steps: pick(steps),
    series: chart.series.map((one) => ({ values: pick(one.values), low: pick(one.low), high: pick(one.high) })),
  };
}

function spoken(chart, data) {
  const told = data.series.map((one, index) => {
    const seen = one.values.filter((value) => value !== null);
    const [first, last] = [seen[0], seen[seen.length - 1]].map(number);
    const [low, high] = [Math.min(...seen), Math.max(...seen)].map(number);
    return `${chart.series[index].label}: ${first} at first, ${last} at last, between ${low} and ${high}`;
  });
  return `${chart.title}, steps ${number(data.steps[0])} to ${number(data.steps[data.steps.length - 1])}. ${told.join(". ")}.`;
}

// uPlot's series for one of ours: the line itself, and the two edges of its band.
function lines(chart, data) {
  const series = [];
  const values = [];
  const bands = [];
  const few = data.steps.length <= 40;
  data.series.forEach((one, index) => {
    const stroke = seriesColour(index);
    const points = { show: few, size: 5, width: 1.5, fill: stroke, stroke };
    series.push({ stroke, width: 1.75, dash: DASHES[index % DASHES.length], points });
    const positive = (value) => (chart.log && !(value > 0) ? null : value);
    values.push(one.values.map(positive));
    if (one.low && one.high) {
      bands.push({ series: [series.length + 2, series.length + 1], fill: `${stroke}3a` });
      series.push({ width: 0, points: { show: false } }, { width: 0, points: { show: false } });
      values.push(one.low, one.high);
    }
  });
  return { series, values, bands };
}

// The tallest first: each later layer covers the lower part of the ones before it.
function layers(data, columnWidth) {
  const sums = data.steps.map(() => 0);
  const drawn = data.series.map((one, index) => {
    one.values.forEach((value, row) => (sums[row] += value ?? 0));
    return { values: [...sums], fill: seriesColour(index) };
  });
  drawn.reverse();
  const gap = columnWidth > 4 ? 1 : 0;
  const paths = uPlot.paths.bars({ size: [1, 28], gap });
  return {
    series: drawn.map(({ fill }) => ({ fill, width: 0, paths, points: { show: false } })),
    values: drawn.map(({ values }) => values),
    bands: [],
  };
}

function yRange(chart) {
  return (_, low, high) => {
    if (low === null) return [0, 1];
    let [bottom, top] = [chart.floor ?? low, chart.ceiling ?? high];
    [bottom, top] = [Math.min(bottom, low), Math.max(top, high)];
    // Noise around a level should look like noise: at least a tenth of the level is in view.
    const missing = Math.max(Math.abs(top) * 0.1 - (top - bottom), 0) / 2;
    const margin = missing + ((top - bottom || Math.abs(top) || 1) * 0.06);
    if (bottom !== chart.floor) bottom -= margin;
    if (top !== chart.ceiling) top += margin;
    return [bottom, top];
  };
}

function logRange(_, low, high) {
  if (low === null) return [0.1, 1];
  const [bottom, top] = [Math.floor(Math.log10(low) - 0.05), Math.ceil(Math.log10(high) + 0.05)];
  return [10 ** bottom, 10 ** (top > bottom ? top : bottom + 1)];
}

function axes(chart) {
  const ink = colour("--muted");
  const line = colour("--line");
  const font = `11px ${colour("--sans")}`;
  const common = { stroke: ink, font, ticks: { show: false }, grid: { stroke: line, width: 1 } };
  const exponent = (value) => {
    const exact = value === null ? NaN : Math.log10(value);
    return Math.abs(exact - Math.round(exact)) < 1e-6 ? Math.round(exact) : null;
  };
  const onlyPowers = (_, splits) => splits.map((value) => (exponent(value) === null ? null : value));
  const powers = (_, splits) => splits.map((value) => (exponent(value) === null ? "" : powerOfTen(exponent(value))));
  const plain = (_, splits) => splits.map((value) => (value === null ? "" : number(Number(value.toPrecision(6)))));
  return [
    { ...common, size: 26, gap: 5, space: 60, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 1e6, 1e7], grid: { show: false }, values: plain, border: { show: true, stroke: line, width: 1 } },
    chart.log
      ? { ...common, size: 52, gap: 6, values: powers, filter: onlyPowers, grid: { ...common.grid, filter: onlyPowers } }
      : { ...common, size: 52, gap: 6, space: 34, values: plain },
  ];
}

// Draws into the figure and returns uPlot's object; `steps` spans the axis that a group shares.
function draw(parts, chart, steps, group, width, height) {
  const data = columns(chart, steps);
  const made = chart.stack ? layers(data, (width - 60) / Math.max(steps.length, 1)) : lines(chart, data);
  const place = (row) => {
    const shown = row ?? data.steps.length - 1;
    parts.at.textContent = `step ${number(data.steps[shown])}`;
    parts.values.forEach((output, index) => (output.textContent = number(data.series[index].values[shown])));
  };
  const [first, last] = [steps[0], steps[steps.length - 1]];
  const room = chart.stack ? Math.max((last - first) / Math.max(steps.length - 1, 1) / 2, 0.5) : (last - first) * 0.01 || 1;
  const options = {
    width,
    height,
    legend: { show: false },
    padding: [8, 10, 0, 0],
    scales: {
      x: { time: false, range: (_, low, high) => (low === null || (low === data.steps[0] && high === data.steps[data.steps.length - 1]) ? [first - room, last + room] : [low, high]) },
      y: chart.log ? { distr: 3, range: logRange } : { range: yRange(chart) },
    },
    axes: axes(chart),
    series: [{}, ...made.series],
    bands: made.bands,
    cursor: {
      y: false,
      points: { show: !chart.stack, size: 7 },
      sync: { key: group, scales: ["x", null] },
    },
    hooks: { setCursor: [(plot) => place(plot.cursor.left < 0 ? null : (plot.cursor.idx ?? null))] },
  };
  parts.canvas.setAttribute("role", "img");
  parts.canvas.setAttribute("aria-label", spoken(chart, data));
  const plot = new uPlot(options, [data.steps, ...made.values], parts.canvas);
  place(null);
  return plot;
}
