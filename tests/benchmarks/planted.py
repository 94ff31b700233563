"""Are planted counts found? Counts of one cell type are put into cells of another, and every score ranks all entries.

    python tests/benchmarks/planted.py COUNTS.h5ad [--groupby facs_celltype] [--n-top-genes 4000 | all]
        [--n-plants 2000] [--n-factors 20] [--seed 0] [--set-aside]

For two types T and U, a gene whose mean count is above 1 in T and below 0.1 in U can be planted: a random cell of U
whose count is zero gets a non-zero count drawn from the cells of T. Pairs of types, genes and cells are drawn at
random, at most three plants a cell. Without `--groupby` the types are Leiden clusters of the data before planting.
The figures are the average precision of finding the plants among all cells x genes, and how many of the top
`--n-plants` entries are plants. Some data hold odd counts of their own, which a good score lists first: with
`--set-aside`, counts of ten and more in genes with a mean below 0.1 in all other cells become zeros first.

ratio, tail             log_ratio and p of `tl.anomalies(direction="up")`, of the negative binomial fit to counts and of
                        the Normal fit to log-normalised values; entries that are not listed come last
residual                absolute residual of the Normal fit
Pearson, upper tail     of the negative binomial fit at its stored rates and theta, not leaving the entry out
PCA                     absolute residual of the reconstruction by `sc.pp.pca`, log-normalised values
"""

import argparse
import time
import warnings
from collections.abc import Iterator

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import scipy.sparse as sp
from scipy.special import betainc
from thinned import blocks, lfm_rate

import scvi_lfm as lfm

MIN_MEAN_SOURCE, MAX_MEAN_TARGET = 1.0, 0.1
MAX_PER_CELL = 3
ODD, RARE = 10, 0.1
FDR = 1 - 1e-9  # lists everything
LFDR = 0.1
NOWHERE = np.float32(-np.finfo(np.float32).max)


def clusters(counts: ad.AnnData) -> pd.Series:
    """Leiden clusters, where the data come without labels."""
    adata = log_normalized(counts)
    sc.pp.pca(adata, n_comps=30)
    sc.pp.neighbors(adata)
    sc.tl.leiden(adata, flavor="igraph", n_iterations=2, directed=False)
    return adata.obs["leiden"]


def log_normalized(counts: ad.AnnData) -> ad.AnnData:
    adata = counts.copy()
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    return adata


def variable_genes(counts: ad.AnnData, n_top: int) -> ad.AnnData:
    """Seurat v3 needs scikit-misc; without it, the older rule on log-normalised values."""
    try:
        genes = sc.pp.highly_variable_genes(counts, n_top_genes=n_top, flavor="seurat_v3", inplace=False)
    except ImportError:
        print("no scikit-misc: variable genes by flavor='seurat'")
        genes = sc.pp.highly_variable_genes(log_normalized(counts), n_top_genes=n_top, flavor="seurat", inplace=False)
    return counts[:, genes["highly_variable"].to_numpy()].copy()


def plant(counts: np.ndarray, types: np.ndarray, n_plants: int, seed: int) -> np.ndarray:
    """Put plants into `counts`; where they are, (n, m) bool."""
    rng = np.random.default_rng(seed)
    names = np.unique(types)
    cells = {name: np.flatnonzero(types == name) for name in names}
    means = {name: counts[cells[name]].mean(0) for name in names}
    markers = {
        (source, target): np.flatnonzero((means[source] > MIN_MEAN_SOURCE) & (means[target] < MAX_MEAN_TARGET))
        for source in names
        for target in names
    }
    pairs = [pair for pair in markers if len(markers[pair])]
    print(f"{len(pairs)} of {len(names) * (len(names) - 1)} ordered pairs of {len(names)} types have genes to plant")
    original, planted = counts.copy(), np.zeros(counts.shape, dtype=bool)
    while planted.sum() < n_plants:
        source, target = pairs[rng.integers(len(pairs))]
        gene, cell = rng.choice(markers[source, target]), rng.choice(cells[target])
        if counts[cell, gene] == 0 and planted[cell].sum() < MAX_PER_CELL:
            drawn = original[cells[source], gene]
            counts[cell, gene], planted[cell, gene] = rng.choice(drawn[drawn > 0]), True
    return planted


def odd(counts: np.ndarray) -> np.ndarray:
    """Counts that are large in genes that are rare in all other cells, (n, m) bool."""
    return (counts >= ODD) & ((counts.sum(0) - counts) / (len(counts) - 1) < RARE)


def listed(adata: ad.AnnData, key: str) -> Iterator[tuple[str, np.ndarray]]:
    """Both scores of `tl.anomalies` as dense matrices."""
    lfm.tl.anomalies(adata, direction="up", by="either", fdr=FDR, max_entries=adata.X.nnz, key=key, key_added="found")
    table = adata.uns["found"]["entries"]
    where = adata.obs_names.get_indexer(table["cell"]), adata.var_names.get_indexer(table["gene"])
    tail = -np.log(np.maximum(table["p"].to_numpy(), 1e-300))
    for name, values in (("ratio", table["log_ratio"].to_numpy()), ("tail", tail)):
        scores = np.full(adata.shape, NOWHERE)
        scores[where] = values
        yield name, scores


def negative_binomial_scores(counts: np.ndarray, adata: ad.AnnData) -> Iterator[tuple[str, np.ndarray]]:
    """Pearson residual and log of the upper tail, from the stored rates and theta."""
    rate, theta = lfm_rate(adata), adata.var["lfm_theta"].to_numpy(dtype=np.float64)
    pearson, tail = np.empty(adata.shape, np.float32), np.full(adata.shape, NOWHERE)
    for cells in blocks(adata.n_obs):
        y, mean = counts[cells], rate(cells)
        pearson[cells] = (y - mean) / np.sqrt(mean + mean**2 / theta)
        i, j = np.nonzero(y)
        m, t = mean[i, j], theta[j]
        tail[cells.start + i, j] = -np.log(np.maximum(betainc(y[i, j].astype(float), t, m / (t + m)), 1e-300))
    yield "NB Pearson residual", pearson
    yield "NB upper tail", tail


def average_precision(scores: np.ndarray, planted: np.ndarray) -> float:
    """What scikit-learn's `average_precision_score` gives, without its copies in float64."""
    everything, found = np.sort(scores, axis=None), np.sort(scores[planted])
    above = everything.size - np.searchsorted(everything, found)
    return float(np.mean((found.size - np.searchsorted(found, found)) / above))


def report(name: str, scores: np.ndarray, planted: np.ndarray) -> None:
    n_plants = int(planted.sum())
    top = np.argpartition(scores, scores.size - n_plants, axis=None)[-n_plants:]
    print(f"{name:24s} {average_precision(scores, planted):8.3f} {planted.ravel()[top].sum():8d}", flush=True)


def report_listed(name: str, adata: ad.AnnData, key: str, planted: np.ndarray) -> None:
    """Both scores of a fit, and what its local false discovery rate promises."""
    for kind, scores in listed(adata, key):
        report(f"{name} {kind}", scores, planted)
    table = adata.uns["found"]["entries"].query("lfdr < @LFDR")
    where = adata.obs_names.get_indexer(table["cell"]), adata.var_names.get_indexer(table["gene"])
    print(f"{name}: {len(table)} entries with lfdr < {LFDR}, {planted[where].sum()} of them planted")


def reconstruction(adata: ad.AnnData, n_comps: int) -> np.ndarray:
    """Values that the leading principal components give."""
    sc.pp.pca(adata, n_comps=n_comps)
    return adata.obsm["X_pca"] @ adata.varm["PCs"].T + np.asarray(adata.X.mean(0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--groupby", help="column of obs with the cell types; without it, Leiden clusters")
    parser.add_argument("--n-top-genes", default="4000", help="number of variable genes, or all")
    parser.add_argument("--n-plants", type=int, default=2000)
    parser.add_argument("--n-factors", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set-aside", action="store_true", help="leave out what is odd before anything is planted")
    parser.add_argument("--baselines-only", action="store_true", help="PCA alone")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    adata = ad.read_h5ad(args.data)
    adata.obs_names_make_unique()
    adata.var_names_make_unique()
    adata.X = sp.csr_matrix(adata.X, dtype=np.float32)
    adata = adata[:, np.asarray(adata.X.sum(0)).ravel() > 0].copy()
    types = (adata.obs[args.groupby] if args.groupby else clusters(adata)).astype(str).to_numpy()
    if args.n_top_genes != "all":
        adata = variable_genes(adata, int(args.n_top_genes))
    counts = adata.X.toarray()
    if args.set_aside:
        own = odd(counts)
        print(f"{own.sum()} entries set aside, in {own.any(1).sum()} cells")
        counts[own] = 0
    planted = plant(counts, types, args.n_plants, args.seed)
    adata = ad.AnnData(sp.csr_matrix(counts), obs=adata.obs[[]], var=adata.var[[]])
    logs = log_normalized(adata)
    kind = args.groupby or "Leiden clusters"
    print(f"{adata.n_obs} x {adata.n_vars}, types: {kind}, {planted.sum()} plants, {args.n_factors} factors")
    print(f"{'':24s} {'average':>8s} {'in top':>8s}\n{'':24s} {'prec.':>8s} {planted.sum():8d}", flush=True)
    values = logs.X.toarray()
    report("PCA", np.abs(values - reconstruction(logs, args.n_factors)), planted)
    if args.baselines_only:
        return

    start = time.perf_counter()
    lfm.tl.fit(logs, n_factors=args.n_factors, rng=args.seed, progress=False)
    print(f"Normal fit: {time.perf_counter() - start:.1f} s")
    lfm.tl.predict(logs, layer_added="expected")
    report("Normal residual", np.abs(values - logs.layers.pop("expected")), planted)
    report_listed("Normal", logs, "lfm", planted)

    start = time.perf_counter()
    lfm.tl.fit(adata, n_factors=args.n_factors, likelihood="negative_binomial", rng=args.seed, progress=False)
    print(f"negative binomial fit: {time.perf_counter() - start:.1f} s")
    for name, scores in negative_binomial_scores(counts, adata):
        report(name, scores, planted)
    report_listed("NB", adata, "lfm", planted)


if __name__ == "__main__":
    main()
