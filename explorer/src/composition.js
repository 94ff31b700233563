// Which groups the selected cells belong to.

import { count, find, make } from "./dom.js";

/** Number of cells of each code. */
export function tally(codes, n, cells = null) {
  const sizes = new Uint32Array(n);
  if (cells) for (let i = 0; i < cells.length; i++) sizes[codes[cells[i]]]++;
  else for (let i = 0; i < codes.length; i++) sizes[codes[i]]++;
  return sizes;
}

/** Bars of the selected cells by group, the largest first. */
export function showComposition(column, codes, cells) {
  find("bars-empty").hidden = Boolean(cells?.length && column);
  find("bars-table").hidden = !(cells?.length && column);
  if (!cells?.length || !column) return;
  const names = [...column.labels, "(missing)"];
  const sizes = tally(codes, names.length, cells);
  const present = names.map((_, code) => code).filter((code) => sizes[code]);
  present.sort((a, b) => sizes[b] - sizes[a] || a - b);
  const rows = present.map((code) => {
    const share = sizes[code] / cells.length;
    const colour = column.colours[code] ?? "#9aa0aa";
    const bar = make("div", { class: "bar", style: { width: `${(100 * sizes[code]) / sizes[present[0]]}%`, background: colour } });
    return make(
      "tr",
      {},
      make("th", { scope: "row", title: names[code] }, names[code]),
      make("td", { class: "track", "aria-hidden": "true" }, bar),
      make("td", {}, count(sizes[code])),
      make("td", {}, `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`),
    );
  });
  find("bars").replaceChildren(...rows);
}
