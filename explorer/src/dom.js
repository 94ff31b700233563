// Small helpers for the document. Names of genes, cells and groups enter it as text only.

export const find = (id) => document.getElementById(id);

export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(element.style, value);
    else if (name === "class") element.className = value;
    else if (value !== false && value !== null && value !== undefined) {
      element.setAttribute(name, value === true ? "" : String(value));
    }
  }
  element.append(...children);
  return element;
}

export const count = (number) => number.toLocaleString("en-GB");

export function cells(number) {
  return `${count(number)} cell${number === 1 ? "" : "s"}`;
}

const MINUS = "\u2212";

/** Numbers of one column, all with as many digits. */
export function fixed(value, digits = 2) {
  if (!Number.isFinite(value)) return "\u2013";
  return value.toFixed(digits).replace("-", MINUS);
}

/** A probability: digits where they say something, a power of ten where it is small. */
export function probability(value) {
  if (!Number.isFinite(value)) return "\u2013";
  if (value >= 0.001) return value.toFixed(3);
  if (value < 1e-99) return "< 1e\u221299";
  return value.toExponential(0).replace("-", MINUS);
}

export function say(text) {
  find("status").textContent = text;
}

export function download(name, lines, type) {
  const address = URL.createObjectURL(new Blob([lines], { type: `${type};charset=utf-8` }));
  const link = make("a", { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

/** A field of a CSV file. */
export function field(value) {
  const text = String(value);
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
