// What cells are coloured by: a code for each cell, a colour for each code, and what the legend says.

// equal steps from low to high, which stands out most: on white those of the package's plots, on dark viridis
const RAMPS = {
  light: ["#9ebcd8", "#3f7fb5", "#0b3d73", "#06122e"],
  dark: ["#414287", "#31668e", "#24878e", "#25ab82", "#67cc5c", "#addc30", "#fde725"],
};
const STEPS = 255; // code 255 is for missing values
const CLIPPED = 0.005; // share of cells at either end that take the colour of the end

export const SETS = {
  light: ["#c9ced6", "#0072b2", "#d55e00", "#7a4f9a"],
  dark: ["#454b55", "#56b4e9", "#f0a030", "#c39bd3"],
};
const PLAIN = { light: "#0072b2", dark: "#56b4e9" };
const MISSING = { light: "#d3d3d3", dark: "#4a4f58" };

export function plain(n) {
  return { codes: new Uint8Array(n), colours: (theme) => [PLAIN[theme]], kind: "plain" };
}

/** Codes of a column of labels; those without a label come after the last. */
export function byLabel(column, codes) {
  return {
    codes,
    colours: (theme) => [...column.colours, MISSING[theme]],
    kind: "labels",
    labels: column.labels,
    palette: column.colours,
  };
}

export function byNumber(values) {
  const [low, high] = range(values);
  const codes = new Uint8Array(values.length);
  const scale = high > low ? (STEPS - 1) / (high - low) : 0;
  for (let i = 0; i < values.length; i++) {
    const step = Math.round((values[i] - low) * scale);
    codes[i] = Number.isNaN(values[i]) ? STEPS : Math.max(0, Math.min(STEPS - 1, step));
  }
  return { codes, colours: (theme) => [...ramp(theme, STEPS), MISSING[theme]], kind: "numbers", low, high, values };
}

export function bySet(n, first, second) {
  const codes = new Uint8Array(n);
  for (const i of first ?? []) codes[i] |= 1;
  for (const i of second ?? []) codes[i] |= 2;
  return { codes, colours: (theme) => SETS[theme], kind: "sets" };
}

export function ramp(theme, steps) {
  const stops = RAMPS[theme];
  return Array.from({ length: steps }, (_, i) => {
    const at = (i / (steps - 1)) * (stops.length - 1);
    const k = Math.min(Math.floor(at), stops.length - 2);
    return mixed(stops[k], stops[k + 1], at - k);
  });
}

/** Order in which cells are drawn: numbers with the highest on top, others so that no group hides another. */
export function drawingOrder({ codes, kind }) {
  const n = codes.length;
  const order = new Array(n);
  if (kind === "numbers") {
    const starts = new Uint32Array(257);
    // missing values, whose code is the last, lie under all others
    for (let i = 0; i < n; i++) starts[((codes[i] + 1) & 255) + 1]++;
    for (let c = 0; c < 256; c++) starts[c + 1] += starts[c];
    for (let i = 0; i < n; i++) order[starts[(codes[i] + 1) & 255]++] = i;
    return order;
  }
  for (let i = 0; i < n; i++) order[i] = i;
  let state = 1;
  for (let i = n - 1; i > 0; i--) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    const other = Math.floor((state / 2 ** 32) * (i + 1));
    [order[i], order[other]] = [order[other], order[i]];
  }
  return order;
}

function range(values) {
  const sample = [];
  const every = Math.max(1, Math.floor(values.length / 20_000));
  for (let i = 0; i < values.length; i += every) if (Number.isFinite(values[i])) sample.push(values[i]);
  if (!sample.length) return [0, 0];
  const sorted = Float64Array.from(sample).sort();
  const at = (share) => sorted[Math.round(share * (sorted.length - 1))];
  const [low, high] = [at(CLIPPED), at(1 - CLIPPED)];
  return low < high ? [low, high] : [sorted[0], sorted[sorted.length - 1]];
}

function mixed(one, other, share) {
  const part = (hex, at) => Number.parseInt(hex.slice(at, at + 2), 16);
  const channel = (at) => Math.round(part(one, at) * (1 - share) + part(other, at) * share);
  return `#${[1, 3, 5].map((at) => channel(at).toString(16).padStart(2, "0")).join("")}`;
}
