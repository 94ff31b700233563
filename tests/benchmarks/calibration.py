"""Are predictions of counts calibrated: in fact, on real data, and in law, on data drawn from the fitted model?

    python tests/benchmarks/calibration.py COUNTS.h5ad [...] [--n-factors 20] [--n-top-genes M] [--n-cells N] [--seed 0]

in fact           `tl.fit` on raw counts of all genes that have any, and the calibration of `tl.check(refit=False)`:
                  without a bound, since no real data follow the model
without factors   the same for a fit whose factors are held at nothing. It must fail one of the bounds below: if it
                  passed, the check could not tell a model from its margins
in law            counts drawn from the fit (stored means of mu, a, A, b, B; stored size factors and theta), fitted
                  anew, and the same check

`ks` is the Kolmogorov-Smirnov distance of the randomised, leave-one-out probability integral transforms from a
uniform, at most 0.01 wanted over all entries and at most 0.02 by expected value. Expected values below 0.1 have no
bound: almost all counts there are zeros and pass under any model. All of these are distances of margins, and a
dispersion for each gene mends margins even where there are no factors. Hence one more figure, of dependence:

structure left    the transforms of the `STRUCTURE_GENES` genes with most counts are made standard Normal. Were they
                  independent, the largest eigenvalue of their n x m matrix times its transpose would lie at
                  (sqrt n + sqrt m)^2. The figure is the ratio of the two, at most 1.1 wanted

Without COUNTS the data set that ships with the package is used.
"""

import argparse
import time
import warnings
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from scipy.special import ndtri

import scvi_lfm as lfm
from scvi_lfm.posterior import read_fit
from scvi_lfm.posterior.leave_one_out import LeaveOneOut

OVERALL, STRATUM, STRUCTURE = 0.01, 0.02, 1.1
STRUCTURE_GENES = 1000
BOUNDED = ("0.1 to 1", "1 to 10", "> 10")
CELLS_PER_BLOCK = 256


def read_counts(path: str | None, n_top_genes: int | None, n_cells: int | None, seed: int) -> ad.AnnData:
    """Raw counts of some cells and of their genes with the most counts; genes without any are left out."""
    adata = ad.read_h5ad(path) if path else lfm.datasets.pbmc_sorted()
    adata.obs_names_make_unique()
    adata.var_names_make_unique()
    if n_cells is not None and n_cells < adata.n_obs:
        cells = np.random.default_rng(seed).choice(adata.n_obs, n_cells, replace=False)
        adata = adata[np.sort(cells)]
    counts = sp.csr_matrix(adata.X, dtype=np.float32)
    totals = np.asarray(counts.sum(0)).ravel()
    genes = np.flatnonzero(totals > 0)
    if n_top_genes is not None and n_top_genes < len(genes):
        genes = np.sort(np.argsort(-totals, kind="stable")[:n_top_genes])
    return ad.AnnData(counts[:, genes], obs=adata.obs[[]], var=adata.var.iloc[genes][[]])


def fitted_rate(adata: ad.AnnData, cells: slice) -> np.ndarray:
    """exp(log s + eta) at the stored means, (cells, m)."""
    size = adata.obs["lfm_size_factor"].to_numpy(dtype=float)[cells, None]
    activity = adata.obs["lfm_a"].to_numpy(dtype=float)[cells, None]
    interaction = adata.obsm["X_lfm"][cells].astype(float) @ adata.varm["lfm"].T.astype(float)
    return size * np.exp(adata.uns["lfm"]["mu"] + activity + adata.var["lfm_b"].to_numpy(dtype=float) + interaction)


def draw_counts(rate: np.ndarray, theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Negative binomial counts: Poisson at rates spread by a gamma."""
    return rng.poisson(rate * rng.gamma(theta, 1 / theta, size=rate.shape))


def draw_from_fit(adata: ad.AnnData, rng: np.random.Generator) -> ad.AnnData:
    """Counts of the same cells and genes from the fitted law."""
    theta = adata.var["lfm_theta"].to_numpy(dtype=float)
    blocks = []
    for start in range(0, adata.n_obs, CELLS_PER_BLOCK):
        rate = fitted_rate(adata, slice(start, start + CELLS_PER_BLOCK))
        blocks.append(sp.csr_matrix(draw_counts(rate, theta, rng).astype(np.float32)))
    return ad.AnnData(sp.vstack(blocks, format="csr"), obs=adata.obs[[]], var=adata.var[[]])


def with_counts(adata: ad.AnnData) -> ad.AnnData:
    """Cells and genes that have any count."""
    detected = adata[np.asarray(adata.X.sum(1)).ravel() > 0]
    return detected[:, np.asarray(detected.X.sum(0)).ravel() > 0].copy()


def bounds(table: pd.DataFrame) -> pd.Series:
    """The largest distance wanted in each row, NaN where there is none."""
    bound = pd.Series(np.nan, index=table.index)
    bound[table["by"] == "all"] = OVERALL
    bound[(table["by"] == "expected") & table["stratum"].isin(BOUNDED)] = STRATUM
    return bound


def structure_left(adata: ad.AnnData) -> float:
    """Largest eigenvalue of the transforms as Normal scores, in units of that of independent ones."""
    q, generator = read_fit(adata, "lfm").posterior, torch.Generator().manual_seed(0)
    loo = LeaveOneOut(q)
    genes = np.argsort(-np.asarray(adata.X.sum(0)).ravel(), kind="stable")[:STRUCTURE_GENES]
    gram = np.zeros((len(genes), len(genes)))
    for start in range(0, adata.n_obs, CELLS_PER_BLOCK):
        cells = slice(start, min(start + CELLS_PER_BLOCK, adata.n_obs))
        y = torch.from_numpy(adata.X[cells].toarray())
        places = loo.law(y, q.at_cells(cells)).transform(y, generator)
        scores = ndtri(np.clip(places[:, genes].double().numpy(), 1e-6, 1 - 1e-6))
        gram += scores.T @ scores
    return float(np.linalg.eigvalsh(gram)[-1] / (np.sqrt(adata.n_obs) + np.sqrt(len(genes))) ** 2)


def report(name: str, adata: ad.AnnData, *, bounded: bool = True, **options: Any) -> bool:
    """Fit, check and print; whether every bound held, where there are any."""
    start = time.perf_counter()
    lfm.tl.fit(adata, likelihood="negative_binomial", progress=False, **options)
    seconds = time.perf_counter() - start
    table = lfm.tl.check(adata, refit=False).calibration
    structure = structure_left(adata)
    failed, too_much = bool((table["ks"] > bounds(table)).any()), structure > STRUCTURE
    verdict = ""
    if bounded:
        table["wanted"] = bounds(table)
        verdict = f" (bounds of ks {'FAILED' if failed else 'held'}, of structure {'FAILED' if too_much else 'held'})"
    epochs = int(np.asarray(adata.uns["lfm"]["elbo"]["epoch"])[-1])
    print(f"\n{name}: fitted in {seconds:.0f} s, {epochs} epochs; structure left {structure:.3f}{verdict}")
    print(table.to_string(index=False, float_format=lambda value: f"{value:.4f}", na_rep=""), flush=True)
    return not (failed or too_much)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="*")
    parser.add_argument("--n-factors", type=int, default=20)
    parser.add_argument("--n-top-genes", type=int, help="those with the most counts; all without it")
    parser.add_argument("--n-cells", type=int, help="drawn at random; all without it")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    for path in args.data or [None]:
        adata = read_counts(path, args.n_top_genes, args.n_cells, args.seed)
        print(f"\n{path or 'pbmc_sorted'}: {adata.n_obs} x {adata.n_vars}, {args.n_factors} factors")
        report("in fact", adata, bounded=False, n_factors=args.n_factors)
        drawn = with_counts(draw_from_fit(adata, np.random.default_rng(args.seed)))
        fine = not report("without factors", adata, n_factors=1, prior_scales={"B": 1e-4})
        print("It fails, as it must." if fine else "It passes: the check has no power here.")
        report(f"in law ({drawn.n_obs} x {drawn.n_vars})", drawn, n_factors=args.n_factors)


if __name__ == "__main__":
    main()
