"""Levels as what they are: simulated ratings fitted with a cumulative probit, and as numbers.

    python tests/benchmarks/levels.py [--users 1000] [--films 400] [--share 0.2] [--seeds 3]

Ratings from 1 to 5 are drawn from a model of three factors with thresholds at unequal distances, most of them at the
upper end, and a share of them is stored. Printed for each likelihood, as means over seeds and of entries that were
not stored: RMSE of the expected level; mean log probability of the level, which a Normal gives to the half level on
either side of it; by how much the frequencies of the five levels differ from their mean probabilities at most; and
seconds of fitting.
"""

import argparse
import time
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.stats import norm

import scvi_lfm as lfm

THRESHOLDS = np.array([-2.4, -1.7, -0.7, 0.6])
LEVELS = np.arange(1, 6)
EDGES = np.array([-np.inf, 1.5, 2.5, 3.5, 4.5, np.inf])
FACTORS = 3


def simulated(users: int, films: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Ratings, and which of them are stored."""
    rng = np.random.default_rng(seed)
    eta = 0.5 * rng.standard_normal((users, 1)) + 0.6 * rng.standard_normal(films)
    eta = eta + rng.standard_normal((users, FACTORS)) @ (0.5 * rng.standard_normal((FACTORS, films)))
    drawn = eta + rng.standard_normal(eta.shape)
    return 1 + np.searchsorted(THRESHOLDS, drawn), rng.random(eta.shape) < share


def probabilities(likelihood: str, table: pd.DataFrame) -> np.ndarray:
    """Of the five levels, (entries, 5)."""
    if likelihood == "ordinal":
        return table[[f"p_{level}" for level in LEVELS]].to_numpy()
    return np.diff(norm.cdf(EDGES, table[["expected"]].to_numpy(), table[["predictive_sd"]].to_numpy()), axis=1)


def figures(likelihood: str, y: np.ndarray, stored: np.ndarray, seed: int) -> list[float]:
    """RMSE, log probability, largest difference of a frequency, seconds."""
    adata = ad.AnnData(sp.csr_matrix(np.where(stored, y, 0).astype(np.float32)))
    start = time.perf_counter()
    lfm.tl.fit(adata, FACTORS, likelihood=likelihood, observed="stored", rng=seed, progress=False)
    seconds = time.perf_counter() - start
    row, column = np.nonzero(~stored)
    some = np.random.default_rng(seed).permutation(len(row))[:200_000]
    row, column = row[some], column[some]
    names = {"obs_names": adata.obs_names[row], "var_names": adata.var_names[column], "pairs": True}
    table, truth = lfm.tl.predict(adata, quantiles=[], **names), y[row, column]
    p = probabilities(likelihood, table)
    rmse = np.sqrt(np.mean((table["expected"] - truth) ** 2))
    often = np.array([(truth == level).mean() for level in LEVELS])
    return [rmse, np.log(p[np.arange(len(truth)), truth - 1]).mean(), np.abs(often - p.mean(0)).max(), seconds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--films", type=int, default=400)
    parser.add_argument("--share", type=float, default=0.2)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    print(f"{'':10}{'RMSE':>8}{'log p':>9}{'off by':>9}{'seconds':>9}")
    for likelihood in ("ordinal", "normal"):
        rows = [
            figures(likelihood, *simulated(args.users, args.films, args.share, seed), seed)
            for seed in range(args.seeds)
        ]
        rmse, log_p, off, seconds = np.mean(rows, axis=0)
        print(f"{likelihood:10}{rmse:8.4f}{log_p:9.4f}{off:9.4f}{seconds:9.2f}")


if __name__ == "__main__":
    main()
