// Building the page: elements, text and numbers. Text is always set as text, never as markup.

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children); // strings become text nodes
  return node;
}

function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹";

function powerOfTen(exponent) {
  const digits = [...String(Math.abs(exponent))].map((digit) => SUPERSCRIPTS[digit]).join("");
  return `10${exponent < 0 ? "⁻" : ""}${digits}`;
}

// Four significant digits, a true minus sign, and powers of ten where zeros would be counted.
function number(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  let text;
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) {
    const [mantissa, exponent] = value.toExponential(1).split("e");
    text = `${mantissa.replace(/\.0$/, "")}×${powerOfTen(Number(exponent))}`.replace(/^(-?)1×/, "$1");
  } else {
    const decimals = size >= 1000 || Number.isInteger(value) ? 0 : size >= 100 ? 1 : size >= 10 ? 2 : size >= 1 ? 3 : 4;
    text = value.toLocaleString("en", { maximumFractionDigits: decimals });
  }
  return text.replace(/^-/, "−");
}

const percent = (share) => `${(share * 100).toFixed(1)}%`;

function table(rows, caption) {
  const body = rows.map(([key, value]) =>
    el("tr", {}, el("th", { scope: "row" }, key), el("td", {}, el("div", {}, value))),
  );
  return el("table", { class: "pairs" }, el("caption", {}, caption), el("tbody", {}, ...body));
}
