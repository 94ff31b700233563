// What the colours mean. A group's entry selects its cells.

import { ramp, SETS } from "./colours.js";
import { cells, count, find, fixed, make } from "./dom.js";

export function showLegend(by, theme, { sizes, onGroup }) {
  const legend = find("legend");
  legend.replaceChildren();
  if (by.kind === "labels") legend.append(groups(by, sizes, onGroup));
  else if (by.kind === "numbers") legend.append(scale(by, theme));
  else if (by.kind === "sets") legend.append(sets(theme));
}

function groups(by, sizes, onGroup) {
  const items = by.labels.map((label, code) => {
    const dot = make("span", { class: "dot", style: { background: by.palette[code] }, "aria-hidden": "true" });
    const button = make(
      "button",
      { type: "button", "aria-label": `Select ${label}, ${cells(sizes[code])}`, disabled: !sizes[code] },
      dot,
      make("span", { class: "label", title: label }, label),
      make("span", { class: "number" }, count(sizes[code])),
    );
    button.addEventListener("click", () => onGroup(code));
    return make("li", {}, button);
  });
  return make("ul", { class: "groups" }, ...items);
}

function scale(by, theme) {
  const colours = ramp(theme, 9).join(", ");
  return make(
    "div",
    { class: "scale" },
    make("div", { class: "ramp", style: { background: `linear-gradient(to right, ${colours})` } }),
    make("div", { class: "ends" }, make("span", {}, fixed(by.low)), make("span", {}, fixed(by.high))),
  );
}

function sets(theme) {
  const names = ["Neither", "A", "B", "Both"];
  const items = names.map((name, code) =>
    make(
      "li",
      { class: "plain" },
      make("span", { class: "dot", style: { background: SETS[theme][code] }, "aria-hidden": "true" }),
      make("span", { class: "label" }, name),
    ),
  );
  return make("ul", { class: "groups" }, ...items);
}
