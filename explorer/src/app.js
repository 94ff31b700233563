// The page: two selections of cells, and what is shown of them.

import { byLabel, byNumber, bySet, plain } from "./colours.js";
import { showComposition, tally } from "./composition.js";
import { Model } from "./contrast.js";
import { cells, count, download, field, find, make, say } from "./dom.js";
import { GeneSearch, showGene } from "./genes.js";
import { showLegend } from "./legend.js";
import { Plot } from "./plot.js";
import { Ranking } from "./ranking.js";
import { current, onTheme } from "./theme.js";

const TOLD = 5; // genes that a screen reader is told after a selection

export class App {
  constructor(header, arrays) {
    Object.assign(this, { header, arrays, sets: { A: null, B: null }, slot: "A", gene: null, drawn: Promise.resolve() });
    this.model = new Model(header, arrays);
    this.columns = header.columns.map((column, c) => ({ ...column, values: arrays[`column_${c}`] }));
    this.labelled = this.columns.filter((column) => column.kind === "labels");
    for (const column of this.labelled) column.sizes = tally(column.values, column.labels.length + 1);
    const onGene = (j) => this.showGene(j);
    this.ranking = new Ranking(this.model, onGene);
    this.search = new GeneSearch(this.model, onGene);
    this.describe();
    this.listen();
  }

  async begin() {
    try {
      this.plot = new Plot(find("plot"), this.header, this.arrays, {
        lasso: (chosen) => this.select(chosen, "lasso"),
        click: (i) => this.inspect(i),
        over: (i) => this.hover(i),
        clear: () => this.select(null),
      });
    } catch (error) {
      find("plot-note").textContent = `Cells cannot be drawn: ${error.message}`;
      find("plot-note").hidden = false;
    }
    onTheme(() => this.recolour());
    const { first } = this.header;
    if (first?.gene !== undefined) this.showGene(first.gene);
    else await this.colourBy(first?.column === undefined ? "plain" : `column ${first.column}`);
    await this.drawn;
    this.update();
  }

  describe() {
    const { header, model } = this;
    find("title").textContent = header.title;
    document.title = header.title;
    const facts = [cells(model.n), `${count(model.m)} genes`, `${model.r} factors`, header.likelihood];
    find("facts").textContent = facts.join(" \u00b7 ");
    find("exact").textContent = header.exact;
    find("plot").setAttribute("aria-label", `Scatter plot of ${cells(model.n)} by ${header.basis}`);
    const options = this.columns.map((column, c) => make("option", { value: `column ${c}` }, column.name));
    find("colour-by").append(
      make("option", { value: "plain" }, "One colour"),
      ...options,
      make("option", { value: "sets" }, "Selections A and B"),
      make("option", { value: "gene", hidden: true, disabled: true }, "Gene"),
    );
    find("bars-by").append(...this.labelled.map((column, c) => make("option", { value: c }, column.name)));
    find("bars-by").parentElement.hidden = !this.labelled.length;
  }

  listen() {
    find("colour-by").addEventListener("change", (event) => this.colourBy(event.target.value));
    find("bars-by").addEventListener("change", () => this.showBars());
    find("against").addEventListener("change", () => this.update());
    for (const slot of ["A", "B"]) {
      find(`slot-${slot}`).addEventListener("change", () => this.setSlot(slot));
      find(`clear-${slot}`).addEventListener("click", () => this.select(null, "", slot));
      find(`export-${slot}`).addEventListener("click", () => {
        download(`cells_${slot}.csv`, this.names(slot), "text/csv");
      });
    }
    for (const mode of ["lasso", "panZoom"]) {
      find(`mode-${mode}`).addEventListener("click", () => this.setMode(mode));
    }
    find("reset-view").addEventListener("click", () => this.plot?.reset());
    find("close-gene").addEventListener("click", () => this.closeGene());
    for (const tab of ["genes", "cells"]) find(`tab-${tab}`).addEventListener("click", () => this.setTab(tab));
    find("tabs").addEventListener("keydown", (event) => {
      if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
      this.setTab(find("tab-genes").getAttribute("aria-selected") === "true" ? "cells" : "genes", true);
    });
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.sets[this.slot]) this.select(null);
    });
  }

  // selections

  /** Put cells into a selection, the active one if none is named; null empties it. */
  select(chosen, label = "", slot = this.slot) {
    this.sets[slot] = chosen?.length ? { cells: chosen, label, moments: this.model.moments(chosen) } : null;
    if (slot === "B") {
      find("against").querySelector("[value=B]").disabled = !this.sets.B;
      find("against").value = this.sets.B ? "B" : "rest";
    }
    this.update();
  }

  setSlot(slot) {
    this.slot = slot;
    find(`slot-${slot}`).checked = true;
    this.plot?.show(this.sets[slot]?.cells);
  }

  selectGroup(column, code) {
    const chosen = new Uint32Array(column.sizes[code]);
    for (let i = 0, at = 0; i < column.values.length; i++) if (column.values[i] === code) chosen[at++] = i;
    this.select(chosen, column.labels[code]);
  }

  /** Answer to what the selections are now. */
  update() {
    const { A, B } = this.sets;
    for (const slot of ["A", "B"]) {
      const set = this.sets[slot];
      const empty = slot === "A" ? "draw a lasso, or choose a group" : "none: choose B, then select";
      find(`size-${slot}`).textContent = set ? [cells(set.cells.length), set.label].filter(Boolean).join(" \u00b7 ") : empty;
      find(`clear-${slot}`).hidden = !set;
      find(`export-${slot}`).hidden = !set;
    }
    this.plot?.show(this.sets[this.slot]?.cells);
    this.rank();
    this.showBars();
    if (find("colour-by").value === "sets") this.colourBy("sets");
    const shared = A && B ? overlap(this.model.n, A.cells, B.cells) : 0;
    find("shared").hidden = !shared;
    find("shared").textContent = `A and B share ${cells(shared)}, which are taken for different ones.`;
  }

  rank() {
    const { A } = this.sets;
    const there = A && this.reference(A);
    const empty = A ? "A holds every cell, so there is no rest. Compare it with the average cell." : "";
    find("genes-empty").textContent = empty || "Genes of selection A appear here.";
    this.ranking.show(there ? this.model.contrast(A.moments, there) : null);
    if (!there) {
      say(A ? empty : "No cells are selected.");
      return;
    }
    const genes = this.ranking.top(TOLD).map((gene) => gene.name);
    say(`${cells(A.cells.length)} in A. First genes: ${genes.join(", ")}.`);
  }

  reference(A) {
    const against = find("against").value;
    if (against === "average") return this.model.average;
    if (against === "B" && this.sets.B) return this.sets.B.moments;
    return A.cells.length < this.model.n ? this.model.restOf(A.moments) : null;
  }

  showBars() {
    const column = this.labelled[Number(find("bars-by").value)];
    showComposition(column, column?.values, this.sets.A?.cells);
  }

  names(slot) {
    const names = this.model.cellNames();
    return `${["names", ...Array.from(this.sets[slot].cells, (i) => field(names[i]))].join("\n")}\n`;
  }

  // colours

  colourBy(value) {
    find("colour-by").value = value;
    if (value === "plain") this.by = plain(this.model.n);
    else if (value === "sets") this.by = bySet(this.model.n, this.sets.A?.cells, this.sets.B?.cells);
    else if (value === "gene") this.by = byNumber(this.model.expectedInCells(this.gene));
    else {
      const column = this.columns[Number(value.split(" ")[1])];
      this.by = column.kind === "labels" ? byLabel(column, column.values) : byNumber(column.values);
      this.by.column = column;
    }
    return this.recolour();
  }

  recolour() {
    const theme = current();
    const { column } = this.by;
    showLegend(this.by, theme, { sizes: column?.sizes, onGroup: (code) => this.selectGroup(column, code) });
    if (this.plot) {
      const { by } = this;
      const draw = () => this.plot.colour(by, theme); // one after the other
      this.drawn = this.drawn.then(draw, draw);
    }
    return this.drawn;
  }

  showGene(j) {
    this.gene = j;
    const name = this.model.geneNames[j];
    const option = find("colour-by").querySelector("[value=gene]");
    option.textContent = `Gene ${name}`;
    option.hidden = option.disabled = false;
    showGene(this.model, j, (other) => this.showGene(other));
    this.ranking.mark(j);
    say(`Cells are coloured by the ${this.header.eta} of ${name}.`);
    return this.colourBy("gene");
  }

  closeGene() {
    this.gene = null;
    showGene(this.model, null);
    this.ranking.mark(null);
    const option = find("colour-by").querySelector("[value=gene]");
    option.hidden = option.disabled = true;
    const column = this.header.first?.column;
    return this.colourBy(column === undefined ? "plain" : `column ${column}`);
  }

  // single cells

  inspect(i) {
    this.plot.shown = null; // the click has selected that cell
    this.plot.show(this.sets[this.slot]?.cells);
    this.hover(i);
    say(find("hovered").textContent);
  }

  hover(i) {
    if (i < 0) {
      find("hovered").textContent = "";
      return;
    }
    const { by } = this;
    const label = by.kind === "labels" ? (by.labels[by.codes[i]] ?? "missing") : by.kind === "numbers" ? by.values[i].toFixed(2) : "";
    find("hovered").textContent = [this.model.cellNames()[i], label].filter(Boolean).join(" \u00b7 ");
  }

  // controls

  setMode(mode) {
    this.plot?.mode(mode);
    for (const other of ["lasso", "panZoom"]) find(`mode-${other}`).setAttribute("aria-pressed", String(other === mode));
  }

  setTab(tab, focus = false) {
    for (const other of ["genes", "cells"]) {
      find(`tab-${other}`).setAttribute("aria-selected", String(other === tab));
      find(`tab-${other}`).tabIndex = other === tab ? 0 : -1;
      find(`panel-${other}`).hidden = other !== tab;
    }
    if (focus) find(`tab-${tab}`).focus();
  }

  // for scripts

  /** Draw a lasso through points (x, y) in the units of the axes: how many cells it holds, and how long the answer took. */
  lasso(vertices) {
    const started = performance.now();
    this.plot.lasso(vertices);
    find("genes-table").getBoundingClientRect(); // the answer is laid out
    return { cells: this.sets[this.slot]?.cells.length ?? 0, milliseconds: performance.now() - started };
  }
}

function overlap(n, one, other) {
  const seen = new Uint8Array(n);
  for (const i of one) seen[i] = 1;
  let shared = 0;
  for (const i of other) shared += seen[i];
  return shared;
}
