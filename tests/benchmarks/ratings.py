"""Held-out ratings of a MovieLens file that you have: the fit against biases alone, `implicit` and published figures.

    python tests/benchmarks/ratings.py PATH [--folds 10 | --splits 2] [--factors 30] [--contestants lfm biases implicit]

PATH is what `lfm.datasets.movielens` reads. `--folds k` makes k folds of the ratings at random; `--splits s` instead
holds out 10 % at random s times. Printed for each fold and as means: RMSE with predictions clipped to the range of the
ratings, mean log density of the (unclipped, Normal) predictive, coverage of 90 % intervals, and seconds of fitting and
predicting.

lfm        `tl.fit(observed="stored", held_out=...)` with its defaults, and `tl.predict`
biases     mu + a_i + b_j alone, scales learned (the model without factors)
implicit   `AlternatingLeastSquares` (pip install implicit), a model of preferences: it gets residuals from the biases,
           and a straight line turns its score into a rating; see `ratings_peers.implicit_als`

For MovieLens 100K the published figures of scikit-surprise are printed beside: means of 5-fold cross-validation with
its defaults, predictions clipped as here (README of https://github.com/NicolasHug/Surprise, version 1.1).
"""

import argparse
import time
import warnings
from collections.abc import Callable, Iterator

import anndata as ad
import numpy as np
from ratings_peers import HEADER, Biases, Entries, Predicted, Scores, implicit_als

import scvi_lfm as lfm

PUBLISHED_100K = {"SVD": 0.934, "SVD++": 0.919, "baseline": 0.944}


def fit_lfm(adata: ad.AnnData, train: Entries, test: Entries, args: argparse.Namespace) -> Predicted:
    adata.layers["held_out"] = test.mask()
    lfm.tl.fit(
        adata,
        args.factors,
        likelihood="normal",
        observed="stored",
        held_out="held_out",
        rng=args.seed,
        progress=False,
        device=args.device,
    )
    table = lfm.tl.predict(
        adata, obs_names=adata.obs_names[test.row], var_names=adata.var_names[test.column], pairs=True, quantiles=[]
    )
    return Predicted(table["expected"].to_numpy(), table["predictive_sd"].to_numpy())


CONTESTANTS: dict[str, Callable[[ad.AnnData, Entries, Entries, argparse.Namespace], Predicted]] = {
    "lfm": fit_lfm,
    "biases": lambda adata, train, test, args: Biases.fit(train).predict(test),
    "implicit": lambda adata, train, test, args: implicit_als(train, test, n_factors=args.factors, seed=args.seed),
}


def held_out(n_entries: int, args: argparse.Namespace) -> Iterator[np.ndarray]:
    """Which entries each fold, or each random split, holds out."""
    rng = np.random.default_rng(args.seed)
    if args.splits:
        yield from (rng.random(n_entries) < 0.1 for _ in range(args.splits))
    else:
        fold = rng.permutation(n_entries) % args.folds
        yield from (fold == k for k in range(args.folds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path")
    parser.add_argument("--folds", type=int, default=10)
    parser.add_argument("--splits", type=int, default=0)
    parser.add_argument("--factors", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--contestants", nargs="*", default=["lfm", "biases"], choices=CONTESTANTS)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")  # movies that lose all of their ratings, and the peers' own
    adata = lfm.datasets.movielens(args.path)
    entries = Entries.of(adata.X)
    limits = (entries.value.min(), entries.value.max())
    print(f"{adata.n_obs} users x {adata.n_vars} movies, {len(entries.row)} ratings, {args.factors} factors")
    results: dict[str, list[tuple[float, float, float, float]]] = {name: [] for name in args.contestants}
    for number, held in enumerate(held_out(len(entries.row), args), start=1):
        train, test = entries.at(~held), entries.at(held)
        print(f"part {number}\n{HEADER}", flush=True)
        for name in args.contestants:
            start = time.perf_counter()
            predicted = CONTESTANTS[name](adata, train, test, args)
            seconds = time.perf_counter() - start
            scores = Scores.of(predicted, test.value, clip=limits)
            results[name].append((scores.rmse, scores.log_density, scores.coverage, seconds))
            print(scores.line(name, seconds), flush=True)
    print(f"means\n{HEADER}")
    for name, rows in results.items():
        *figures, seconds = np.mean(rows, axis=0)
        print(Scores(*figures).line(name, seconds))
    if (adata.n_obs, adata.n_vars, len(entries.row)) == (943, 1682, 100_000):
        print("published by scikit-surprise, RMSE:", ", ".join(f"{k} {v}" for k, v in PUBLISHED_100K.items()))


if __name__ == "__main__":
    main()
