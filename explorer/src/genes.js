// One gene: found by its name, shown with the genes that go with it.

import { find, fixed, make } from "./dom.js";

const SHOWN = 8;
const SIMILAR = 12;

export class GeneSearch {
  /** @param onGene called with the position of the gene that was chosen */
  constructor(model, onGene) {
    Object.assign(this, { model, onGene, found: [], at: -1 });
    this.folded = model.geneNames.map((name) => name.toLowerCase());
    const input = find("gene-search");
    input.addEventListener("input", () => this.look(input.value));
    input.addEventListener("keydown", (event) => this.key(event));
    input.addEventListener("blur", () => setTimeout(() => this.list([]), 150));
  }

  look(text) {
    const wanted = text.trim().toLowerCase();
    this.list(wanted ? this.matches(wanted) : []);
  }

  /** The same name first, then those that begin so, then those that hold it. */
  matches(wanted) {
    const ranked = [[], [], []];
    this.folded.forEach((name, j) => {
      const place = name.indexOf(wanted);
      if (place >= 0) ranked[name === wanted ? 0 : place === 0 ? 1 : 2].push(j);
    });
    // of those that begin so: CD3 is less like CD34 than like CD3E
    const number = /\d$/.test(wanted);
    const rest = (j) => this.folded[j].slice(wanted.length);
    const further = (j) => Number(number && /^\d/.test(rest(j)));
    ranked[1].sort((i, j) => further(i) - further(j) || rest(i).length - rest(j).length || i - j);
    return ranked.flat().slice(0, SHOWN);
  }

  list(found) {
    this.found = found;
    this.at = found.length ? 0 : -1;
    const options = found.map((j, place) => {
      const option = make("li", { role: "option", id: `match-${place}` }, this.model.geneNames[j]);
      option.addEventListener("mousedown", (event) => {
        event.preventDefault();
        this.choose(j);
      });
      return option;
    });
    find("gene-matches").replaceChildren(...options);
    find("gene-matches").hidden = !found.length;
    find("gene-search").setAttribute("aria-expanded", String(Boolean(found.length)));
    this.mark();
  }

  mark() {
    [...find("gene-matches").children].forEach((option, place) => {
      option.setAttribute("aria-selected", String(place === this.at));
    });
    if (this.at >= 0) find("gene-search").setAttribute("aria-activedescendant", `match-${this.at}`);
    else find("gene-search").removeAttribute("aria-activedescendant");
  }

  key(event) {
    const steps = { ArrowDown: 1, ArrowUp: -1 };
    if (event.key in steps && this.found.length) {
      this.at = (this.at + steps[event.key] + this.found.length) % this.found.length;
      this.mark();
    } else if (event.key === "Enter" && this.at >= 0) this.choose(this.found[this.at]);
    else if (event.key === "Escape") this.list([]);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  choose(j) {
    find("gene-search").value = this.model.geneNames[j];
    this.list([]);
    this.onGene(j);
  }
}

/** The card of a gene; null hides it. */
export function showGene(model, j, onGene) {
  find("gene-card").hidden = j === null;
  if (j === null) return;
  find("gene-name").textContent = model.geneNames[j];
  const similar = model.similar(j, SIMILAR).map(({ gene, correlation }) => {
    const button = make("button", { type: "button", class: "name" }, model.geneNames[gene]);
    button.addEventListener("click", () => onGene(gene));
    return make("li", {}, button, make("span", {}, fixed(correlation)));
  });
  find("similar").replaceChildren(...similar);
}
