// The scatter plot: positions, colours and the lasso.

import createScatterplot from "regl-scatterplot";
import { drawingOrder } from "./colours.js";

const MARGIN = 0.94; // of the plot, that points take
const GROUND = { light: "#ffffff", dark: "#14171c" };
const LASSO = { light: "#0072b2", dark: "#56b4e9" };

export class Plot {
  /** @param events functions `lasso(cells)`, `click(cell)`, `over(cell or -1)` and `clear()` */
  constructor(canvas, header, arrays, events) {
    if (!document.createElement("canvas").getContext("webgl")) {
      throw new Error("this browser has no WebGL, or it is switched off. Groups can be selected all the same.");
    }
    const [x, y] = header.axes;
    const half = Math.max(x.high - x.low, y.high - y.low) / 2 / MARGIN || 1;
    this.places = [x, y].map((axis) => (value) => (value - (axis.low + axis.high) / 2) / half);
    const all = (codes, axis, place) => {
      const step = (axis.high - axis.low) / 65535;
      return Float32Array.from(codes, (code) => place(axis.low + step * code));
    };
    this.x = all(arrays.x, x, this.places[0]);
    this.y = all(arrays.y, y, this.places[1]);
    this.index = undefined;
    const n = this.x.length;
    this.scatter = createScatterplot({
      canvas,
      syncEvents: true,
      spatialIndexUseWorker: false,
      deselectOnEscape: false,
      lassoMinDelay: 8,
      lassoClearEvent: "lassoEnd",
      lassoInitiator: false,
      mouseMode: "lasso",
      colorBy: "valueA",
      pointSize: Math.max(1.4, Math.min(6, 6 - 1.15 * Math.log10(Math.max(n, 100) / 300))),
      pointSizeSelected: 0.6,
      pointOutlineWidth: 0,
      opacity: n > 50_000 ? 0.7 : 0.85,
    });
    this.#listen(events);
  }

  #listen({ lasso, click, over, clear }) {
    // a lasso selects, and then says that it has ended; a click selects one cell
    let selected = null;
    this.scatter.subscribe("select", ({ points }) => {
      selected = points;
      queueMicrotask(() => {
        if (selected) click(selected[0]);
        selected = null;
      });
    });
    this.scatter.subscribe("lassoEnd", () => {
      selected = null;
      this.shown = Uint32Array.from(this.scatter.get("selectedPoints"));
      lasso(this.shown);
    });
    this.scatter.subscribe("deselect", clear);
    this.scatter.subscribe("pointOver", over);
    this.scatter.subscribe("pointOut", () => over(-1));
  }

  async colour(by, theme) {
    this.by = by;
    const colours = by.colours(theme);
    const ground = GROUND[theme];
    // the renderer takes a single colour for all states, and several for the values of a point
    this.scatter.set({
      pointColor: colours.length > 1 ? colours : [colours[0], colours[0]],
      pointColorActive: LASSO[theme],
      pointColorHover: LASSO[theme],
      backgroundColor: ground,
      lassoColor: LASSO[theme],
      // colours of selections tell by themselves what is selected
      opacityInactiveScale: by.kind === "sets" ? 1 : 0.35,
    });
    await this.scatter.draw(
      { x: this.x, y: this.y, z: by.codes },
      { zDataType: "categorical", spatialIndex: this.index },
    );
    this.index = this.scatter.get("spatialIndex");
    this.scatter.set({ pointOrder: drawingOrder(by) });
  }

  theme(theme) {
    return this.colour(this.by, theme);
  }

  /** Show some cells as selected, without telling anybody. */
  show(cells) {
    if (cells === this.shown) return;
    this.shown = cells;
    if (cells?.length) this.scatter.select(Array.from(cells), { preventEvent: true });
    else this.scatter.deselect({ preventEvent: true });
  }

  /** Draw a lasso through points (x, y) in the units of the axes. */
  lasso(vertices) {
    const placed = vertices.map((point) => point.map((value, axis) => this.places[axis](value)));
    this.scatter.lassoSelect(placed, { isGl: true });
  }

  mode(mode) {
    this.scatter.set({ mouseMode: mode });
  }

  reset() {
    this.scatter.reset();
  }
}
