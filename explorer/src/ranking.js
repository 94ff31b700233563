// The table of genes of selection A, and its export.

import { orderOf } from "./contrast.js";
import { count, download, field, find, fixed, make, probability } from "./dom.js";

const AT_FIRST = 50;
const MORE = 200;

export class Ranking {
  /** @param onGene called with the position of a gene that was clicked */
  constructor(model, onGene) {
    Object.assign(this, { model, onGene, rows: AT_FIRST, result: null, order: [], lower: false, gene: null });
    find("higher").addEventListener("click", () => this.direction(false));
    find("lower").addEventListener("click", () => this.direction(true));
    find("rank-by").addEventListener("change", () => this.show(this.result));
    find("more").addEventListener("click", () => {
      this.rows += MORE;
      this.draw();
    });
    find("export-genes").addEventListener("click", () => download("genes.csv", this.csv(), "text/csv"));
  }

  show(result) {
    this.result = result;
    this.rows = AT_FIRST;
    this.order = result ? orderOf(inOrderOf(result, find("rank-by").value)) : [];
    this.draw();
  }

  direction(lower) {
    this.lower = lower;
    find("higher").setAttribute("aria-pressed", String(!lower));
    find("lower").setAttribute("aria-pressed", String(lower));
    this.rows = AT_FIRST;
    this.draw();
  }

  mark(gene) {
    this.gene = gene;
    for (const row of find("genes").children) row.classList.toggle("current", Number(row.dataset.gene) === gene);
  }

  /** Genes in the order shown. */
  listed() {
    return this.lower ? [...this.order].reverse() : this.order;
  }

  draw() {
    const { result, model } = this;
    find("genes-empty").hidden = Boolean(result);
    find("genes-table").hidden = !result;
    find("export-genes").disabled = !result;
    const listed = this.listed();
    find("genes").replaceChildren(...listed.slice(0, this.rows).map((j) => this.row(j)));
    find("more").hidden = this.rows >= listed.length;
    find("more").textContent = `Show more of ${count(model.m)} genes`;
  }

  row(j) {
    const { score, sd, lfsr, fold } = this.result;
    const name = this.model.geneNames[j];
    const button = make("button", { type: "button", class: "name", title: `Colour cells by ${name}` }, name);
    button.addEventListener("click", () => this.onGene(j));
    const numbers = [fixed(score[j]), fixed(sd[j]), probability(lfsr[j]), fixed(fold[j])];
    const row = make("tr", { "data-gene": j }, make("th", { scope: "row" }, button));
    row.append(...numbers.map((text) => make("td", {}, text)));
    row.classList.toggle("current", j === this.gene);
    return row;
  }

  /** The first genes in the order asked for, as numbers. */
  top(number) {
    const { score, sd, lfsr, fold } = this.result;
    return this.order.slice(0, number).map((j) => ({
      name: this.model.geneNames[j],
      score: score[j],
      sd: sd[j],
      lfsr: lfsr[j],
      logfoldchange: fold[j],
    }));
  }

  csv() {
    const names = "names,scores,sd,lfsr,logfoldchanges";
    const rows = this.top(this.order.length).map((gene) => Object.values(gene).map(cell).join(","));
    return `${[names, ...rows].join("\n")}\n`;
  }
}

/** What orders genes: scores, or scores over their standard deviations, which are 0 where there is neither. */
function inOrderOf({ score, sd }, by) {
  return by === "score" ? score : score.map((value, j) => (value === 0 ? 0 : value / sd[j]));
}

function cell(value) {
  if (typeof value !== "number") return field(value);
  return Number.isFinite(value) ? value.toPrecision(7) : "";
}
