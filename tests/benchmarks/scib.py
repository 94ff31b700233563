"""The batches of tutorial 04 judged by scib-metrics: PCA, Harmony, and fits with and without the covariate.

scib-metrics brings jax, so it has an environment of its own:

    python3 -m venv scib
    scib/bin/pip install torch==2.13.0
    scib/bin/pip install . scib-metrics harmonypy
    scib/bin/python tests/benchmarks/scib.py [--seeds 1]
"""

from __future__ import annotations

import argparse
import warnings

import anndata as ad
import harmonypy
import numpy as np
import pandas as pd
import scanpy as sc
import scipy.sparse as sp
from scib_metrics.benchmark import Benchmarker

import scvi_lfm as lfm

ALONE = "CD56+ NK"  # in batch one only
N_FACTORS = 15
TYPE, BATCH = "facs_celltype", "batch"


def two_batches(seed: int) -> ad.AnnData:
    """The shipped cells, molecules of which were thrown away by batch: rates differ by exp(Normal(0, 0.5))."""
    cells = lfm.datasets.pbmc_sorted()
    rng = np.random.default_rng(seed)
    batch = rng.choice(["one", "two"], cells.n_obs)
    batch[cells.obs[TYPE] == ALONE] = "one"
    delta = rng.normal(0, 0.5, cells.n_vars)
    kept = np.where((batch == "two")[:, None], np.exp(np.minimum(delta, 0)), np.exp(-np.maximum(delta, 0)))
    counts = cells.X.tocoo()
    left = rng.binomial(counts.data.astype(int), kept[counts.row, counts.col])
    matrix = sp.csr_matrix((left.astype(np.float32), (counts.row, counts.col)), shape=cells.shape)
    adata = ad.AnnData(matrix, obs=cells.obs[[TYPE]].assign(**{BATCH: pd.Categorical(batch)}), var=cells.var[[]])
    sc.pp.filter_genes(adata, min_cells=3)
    return adata


def embed(adata: ad.AnnData, seed: int) -> dict[str, str]:
    """Write the embeddings into obsm; key of each by what it is called."""
    logs = sc.pp.normalize_total(adata, target_sum=1e4, copy=True)
    sc.pp.log1p(logs)
    sc.pp.pca(logs, n_comps=N_FACTORS, mask_var=None, random_state=seed)
    adata.obsm["X_pca"] = logs.obsm["X_pca"]
    lfm.tl.fit(adata, N_FACTORS, key_added="plain", progress=False, rng=seed)
    lfm.tl.fit(adata, N_FACTORS, covariates=[BATCH], progress=False, rng=seed)
    named = {"PCA": "X_pca", "fit": "X_plain", "fit with covariate": "X_lfm"}
    for name, key in list(named.items()):
        moved = harmonypy.run_harmony(adata.obsm[key], adata.obs, BATCH, verbose=False, random_state=seed)
        adata.obsm[f"{key}_harmony"] = moved.Z_corr
        named[f"{name}, then Harmony"] = f"{key}_harmony"
    return named


def judge(adata: ad.AnnData, named: dict[str, str]) -> pd.DataFrame:
    """All measures of scib-metrics, not rescaled; a row for each embedding."""
    keys = list(named.values())
    benchmark = Benchmarker(adata, BATCH, TYPE, keys, pre_integrated_embedding_obsm_key="X_pca", n_jobs=1)
    benchmark.benchmark()
    table = benchmark.get_results(min_max_scale=False).drop(index="Metric Type")
    return table.astype(float).rename({key: name for name, key in named.items()}).loc[list(named)]


def main() -> None:
    """Print the mean over seeds, and the spread of the totals."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=1)
    tables = []
    for seed in range(parser.parse_args().seeds):
        adata = two_batches(seed)
        tables.append(judge(adata, embed(adata, seed)))
    joined = pd.concat(tables, keys=range(len(tables)))
    pd.set_option("display.width", 250, "display.max_columns", 30)
    print(joined.groupby(level=1, sort=False).mean().round(2).T.to_string())
    if len(tables) > 1:
        print("\nlargest less smallest total over seeds")
        print(joined["Total"].groupby(level=1, sort=False).agg(np.ptp).round(3).to_string())


if __name__ == "__main__":
    warnings.simplefilter("ignore", FutureWarning)
    main()
