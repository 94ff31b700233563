// Genes of one set of cells against another: the formulas of tl.rank_genes, on the arrays of the page.
//
// Cells are rows (a, A) and genes rows (b, B); k = 1 + r. Matrices are flat and row by row.

import { upperTail } from "./normal.js";
import { halfPrecision } from "./payload.js";

export class Model {
  constructor(header, arrays) {
    const { n_cells: n, n_genes: m, n_factors: r } = header;
    Object.assign(this, { header, n, m, r, k: 1 + r, half: halfPrecision() });
    this.columns = Array.from({ length: this.k }, (_, c) => arrays[`cell_${c}`]);
    this.scales = header.cell_scales;
    this.coefficients = header.cell_cov_steps.map((_, c) => arrays[`cell_cov_${c}`]);
    this.cellCov = arrays.cell_covs; // (1 + K, k, k): a mean, and what cells differ by
    this.genes = arrays.genes; // (m, k)
    this.geneNames = arrays.gene_names();
    this.cellNames = arrays.cell_names;
    this.geneCov = { transform: arrays.gene_transform, correlation: arrays.gene_correlation };
    this.geneVariances = header.gene_cov === "eigenbasis" ? underNoise(arrays) : arrays.gene_variances;
    this.population = arrays.population; // (r, r)
    this.populationVariance = arrays.gene_population_variance;
    this.all = this.moments(null);
    this.average = { n: Infinity, mean: new Float64Array(this.k), cov: new Float64Array(this.k ** 2) };
  }

  /** Mean of (a, A) over some cells, and covariance of that mean; all cells for null. */
  moments(cells) {
    const { k } = this;
    const n = cells ? cells.length : this.n;
    const mean = new Float64Array(k);
    for (let c = 0; c < k; c++) mean[c] = (this.scales[c] * sumOf(this.columns[c], cells, this.half)) / n;
    const shares = this.coefficients.map((column, c) => (this.header.cell_cov_steps[c] * sumOf(column, cells)) / n);
    return { n, mean, shares, cov: this.covOfMean(shares, n) };
  }

  covOfMean(shares, n) {
    const size = this.k ** 2;
    const cov = new Float64Array(size);
    for (let e = 0; e < size; e++) {
      let value = this.cellCov[e];
      for (let c = 0; c < shares.length; c++) value += shares[c] * this.cellCov[(c + 1) * size + e];
      cov[e] = value / n;
    }
    return cov;
  }

  /** The same of the cells that are not among some, from their moments. */
  restOf(some) {
    const n = this.n - some.n;
    const less = (all, part) => Float64Array.from(all, (value, c) => (value * this.n - part[c] * some.n) / n);
    const shares = [...less(this.all.shares, some.shares)];
    return { n, mean: less(this.all.mean, some.mean), shares, cov: this.covOfMean(shares, n) };
  }

  /** Score, sd, lfsr and log2 fold change of every gene for one set's moments against another's. */
  contrast(here, there) {
    const { k, r, m, genes } = this;
    const difference = here.mean.map((value, c) => value - there.mean[c]);
    const cov = here.cov.map((value, e) => value + there.cov[e]);
    const fromGenes = this.geneTerm(difference, cov);
    const score = new Float64Array(m);
    const sd = new Float64Array(m);
    const lfsr = new Float64Array(m);
    const v = new Float64Array(k);
    v[0] = 1;
    for (let j = 0; j < m; j++) {
      let value = difference[0];
      for (let c = 1; c < k; c++) {
        v[c] = genes[j * k + c];
        value += v[c] * difference[c];
      }
      let variance = fromGenes[j];
      for (let c = 0; c < k; c++) {
        let row = 0.5 * cov[c * k + c] * v[c];
        for (let d = 0; d < c; d++) row += cov[c * k + d] * v[d];
        variance += 2 * row * v[c];
      }
      score[j] = value;
      sd[j] = Math.sqrt(Math.max(variance, 0));
      lfsr[j] = upperTail(value === 0 ? 0 : Math.abs(value) / sd[j]);
    }
    return { score, sd, lfsr, fold: this.foldChanges(score, here, there), r };
  }

  /** D_A' T_BB D_A + tr(T_BB var(D)_AA) of every gene. */
  geneTerm(difference, cov) {
    const { k, r, m } = this;
    const inner = new Float64Array(r * r);
    for (let c = 0; c < r; c++) {
      for (let d = 0; d < r; d++) {
        inner[c * r + d] = difference[c + 1] * difference[d + 1] + cov[(c + 1) * k + d + 1];
      }
    }
    const out = new Float64Array(m);
    if (r === 0) return out;
    const { transform, correlation } = this.geneCov;
    const q = transform.length / r;
    const inBasis = congruent(transform, inner, r, q);
    if (!correlation) {
      for (let j = 0; j < m; j++) {
        for (let c = 0; c < q; c++) out[j] += this.geneVariances[j * q + c] * inBasis[c * q + c];
      }
      return out;
    }
    const spread = new Float64Array(r);
    const step = 2 / this.header.correlation_steps;
    for (let j = 0, at = 0; j < m; j++) {
      for (let c = 0; c < r; c++) {
        spread[c] = Math.sqrt(this.geneVariances[j * r + c]);
        let row = 0;
        for (let d = 0; d < c; d++) row += correlation[at++] * spread[d] * inBasis[c * r + d];
        out[j] += spread[c] * (step * row + spread[c] * inBasis[c * r + c]);
      }
    }
    return out;
  }

  /** Mean expected eta of a gene over the cells of some moments. */
  expected(j, moments) {
    let eta = this.header.mu + this.genes[j * this.k] + moments.mean[0];
    for (let c = 1; c < this.k; c++) eta += this.genes[j * this.k + c] * moments.mean[c];
    return eta;
  }

  foldChanges(score, here, there) {
    const { has_rate: hasRate, log_base: base } = this.header;
    if (hasRate) return score.map((value) => value / Math.LN2);
    if (base === null) return score.map(() => NaN);
    const unlogged = (eta) => Math.log2(Math.expm1(Math.max(eta, 0) * Math.log(base)) + 1e-9);
    return score.map((_, j) => unlogged(this.expected(j, here)) - unlogged(this.expected(j, there)));
  }

  /** Expected eta of one gene in every cell. */
  expectedInCells(j) {
    const { n, k, half } = this;
    const eta = new Float32Array(n).fill(this.header.mu + this.genes[j * k]);
    for (let c = 0; c < k; c++) {
      const weight = this.scales[c] * (c ? this.genes[j * k + c] : 1);
      const column = this.columns[c];
      for (let i = 0; i < n; i++) eta[i] += weight * half[column[i]];
    }
    return eta;
  }

  /** Genes by correlation of expected expression with that of one, best first. */
  similar(j, top) {
    const { k, r, m, genes, populationVariance: variance } = this;
    const direction = new Float64Array(r);
    for (let c = 0; c < r; c++) {
      for (let d = 0; d < r; d++) direction[c] += this.population[c * r + d] * genes[j * k + d + 1];
    }
    const correlation = new Float64Array(m);
    for (let l = 0; l < m; l++) {
      for (let c = 0; c < r; c++) correlation[l] += genes[l * k + c + 1] * direction[c];
      correlation[l] /= Math.sqrt(Math.max(variance[l] * variance[j], Number.MIN_VALUE));
    }
    const order = orderOf(correlation).filter((l) => l !== j);
    return order.slice(0, top).map((l) => ({ gene: l, correlation: correlation[l] }));
  }
}

/** Positions in decreasing order of value, those of equal value as they were. */
export function orderOf(values) {
  return Array.from(values, (_, j) => j).sort((a, b) => values[b] - values[a] || a - b);
}

function underNoise({ gene_sigma: sigma, gene_eigenvalues: eig }) {
  const q = eig.length;
  const variances = new Float64Array(sigma.length * q);
  for (let j = 0; j < sigma.length; j++) {
    const precision = 1 / sigma[j] ** 2;
    for (let c = 0; c < q; c++) variances[j * q + c] = 1 / (eig[c] * precision + 1);
  }
  return variances;
}

function sumOf(column, cells, table) {
  let sum = 0;
  if (table && cells) for (let i = 0; i < cells.length; i++) sum += table[column[cells[i]]];
  else if (table) for (let i = 0; i < column.length; i++) sum += table[column[i]];
  else if (cells) for (let i = 0; i < cells.length; i++) sum += column[cells[i]];
  else for (let i = 0; i < column.length; i++) sum += column[i];
  return sum;
}

/** U' M U of M (r, r) and U (r, q). */
function congruent(U, M, r, q) {
  const right = new Float64Array(r * q);
  for (let c = 0; c < r; c++) {
    for (let d = 0; d < r; d++) for (let e = 0; e < q; e++) right[c * q + e] += M[c * r + d] * U[d * q + e];
  }
  const out = new Float64Array(q * q);
  for (let c = 0; c < r; c++) {
    for (let d = 0; d < q; d++) for (let e = 0; e < q; e++) out[d * q + e] += U[c * q + d] * right[c * q + e];
  }
  return out;
}
