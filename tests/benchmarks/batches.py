"""Two batches, with and without `covariates`: can a classifier tell the batch, and are cell types kept?

Simulated: four types whose shares differ 3:1 between two batches, a random shift of every gene in the second; the same
cells without the shift are the batch-free simulation. Real: sorted and unsorted blood cells of one study, joined on
common genes, as two batches.

    python tests/benchmarks/batches.py [--cells 3000] [--genes 1000] [--seeds 3]
    python tests/benchmarks/batches.py --real pbmc_facs.h5ad pbmc3k_raw.h5ad [--cells 1500]
"""

from __future__ import annotations

import argparse
import warnings
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score, silhouette_score
from sklearn.model_selection import cross_val_predict
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

import scvi_lfm as lfm

if TYPE_CHECKING:
    from sklearn.base import ClassifierMixin

LIKELIHOODS = ("normal", "negative_binomial")
N_TYPES, SHIFT = 4, 0.5


def two_batches(n_cells: int, n_genes: int, likelihood: str, seed: int) -> tuple[ad.AnnData, ad.AnnData]:
    """Counts, or log-normalised counts for the Normal, with and without the shift of the second batch."""
    rng = np.random.default_rng(seed)
    second = rng.random(n_cells) < 0.5
    share = np.tile([3.0, 1.0], N_TYPES // 2) / (2 * N_TYPES)
    kind = np.where(second, rng.choice(N_TYPES, n_cells, p=share[::-1]), rng.choice(N_TYPES, n_cells, p=share))
    markers = 0.8 * rng.standard_normal((N_TYPES, n_genes)) * (rng.random((N_TYPES, n_genes)) < 0.25)
    gradual = rng.standard_normal((n_cells, 3)) @ (0.15 * rng.standard_normal((3, n_genes)))
    free = rng.standard_normal(n_genes) - 0.5 + markers[kind] + gradual
    size = np.exp(0.4 * rng.standard_normal((n_cells, 1)))
    sets = []
    for eta in (free + np.outer(second, SHIFT * rng.standard_normal(n_genes)), free):
        counts = rng.poisson(size * np.exp(eta) * rng.gamma(5, 1 / 5, eta.shape)).astype(np.float32)
        obs = pd.DataFrame({"batch": np.where(second, "two", "one"), "type": kind.astype(str)})
        adata = ad.AnnData(counts, obs=obs.set_index(obs.index.map("cell_{}".format)))
        if likelihood == "normal":
            sc.pp.normalize_total(adata)
            sc.pp.log1p(adata)
        sets.append(adata)
    return sets[0], sets[1]


def auc(features: np.ndarray, second: np.ndarray, n_trees: int = 200) -> tuple[float, float]:
    """Cross-validated area under the curve of a linear and of a forest classifier of the batch."""
    forest = RandomForestClassifier(n_trees, min_samples_leaf=5, random_state=0)
    return linear_auc(features, second), _auc(forest, features, second)


def linear_auc(features: np.ndarray, second: np.ndarray) -> float:
    """The linear classifier's alone."""
    return _auc(LogisticRegression(max_iter=1000), features, second)


def _auc(classifier: ClassifierMixin, features: np.ndarray, second: np.ndarray) -> float:
    score = cross_val_predict(classifier, features, second, cv=5, method="predict_proba")[:, 1]
    return float(roc_auc_score(second, score))


def accuracy(features: np.ndarray, labels: np.ndarray) -> float:
    """Cross-validated accuracy of 15 nearest neighbours."""
    return float((cross_val_predict(KNeighborsClassifier(15), features, labels, cv=5) == labels).mean())


def simulated(n_cells: int, n_genes: int, seeds: int) -> None:
    """One line for each fit."""
    print("likelihood seed fit AUC_linear AUC_forest type_accuracy")
    for likelihood in LIKELIHOODS:
        for seed in range(seeds):
            shifted, free = two_batches(n_cells, n_genes, likelihood, seed)
            second = (shifted.obs["batch"] == "two").to_numpy()
            kind = shifted.obs["type"].to_numpy()
            print(likelihood, seed, "true types", *(f"{x:.3f}" for x in auc(pd.get_dummies(kind).to_numpy(), second)))
            for name, adata, covariates in (
                ("batch-free", free, None),
                ("no covariate", shifted, None),
                ("covariate", shifted, ["batch"]),
            ):
                lfm.tl.fit(adata, 10, likelihood=likelihood, covariates=covariates, progress=False)
                X = adata.obsm["X_lfm"]
                print(likelihood, seed, name, *(f"{x:.3f}" for x in auc(X, second)), f"{accuracy(X, kind):.4f}")


def real(sorted_cells: str, unsorted_cells: str, n_cells: int) -> None:
    """Mixing of the two sets, and how well sorted types are told apart among the sorted cells."""
    parts = {"sorted": ad.read_h5ad(sorted_cells), "unsorted": ad.read_h5ad(unsorted_cells)}
    rng = np.random.default_rng(0)
    for name, part in parts.items():
        part.var_names_make_unique()
        parts[name] = part[np.sort(rng.permutation(part.n_obs)[:n_cells])].copy()
    counts = ad.concat(parts, label="batch", index_unique="-", join="inner", merge=None)
    sc.pp.filter_genes(counts, min_cells=10)
    kind = parts["sorted"].obs["facs_celltype"].astype(str).to_numpy()
    second = (counts.obs["batch"] == "unsorted").to_numpy()
    print(f"{counts.n_obs} cells x {counts.n_vars} genes")
    print("likelihood fit other_batch_among_15/expected silhouette_by_batch type_accuracy_of_sorted")
    for likelihood in LIKELIHOODS:
        adata = counts.copy()
        if likelihood == "normal":
            sc.pp.normalize_total(adata, target_sum=1e4)
            sc.pp.log1p(adata)
        for name, covariates in (("no covariate", None), ("covariate", ["batch"])):
            lfm.tl.fit(adata, 20, likelihood=likelihood, covariates=covariates, progress=False)
            X = adata.obsm["X_lfm"]
            near = NearestNeighbors(n_neighbors=16).fit(X).kneighbors(X, return_distance=False)[:, 1:]
            other = (second[near] != second[:, None]).mean(1)
            expected = np.where(second, (~second).mean(), second.mean())
            figures = (other / expected).mean(), silhouette_score(X, second), accuracy(X[~second], kind)
            print(likelihood, name, *(f"{x:.3f}" for x in figures))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=3000)
    parser.add_argument("--genes", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--real", nargs=2)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.real:
        real(*given.real, n_cells=given.cells)
    else:
        simulated(given.cells, given.genes, given.seeds)
