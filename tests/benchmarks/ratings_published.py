"""MovieLens 100K in the folds that were published with it: a Normal and levels, beside published figures.

    python tests/benchmarks/ratings_published.py FOLDER [--folds 1 2 3 4 5] [--factors 8] [--tol 1e-6] [--seed 0]

FOLDER is the `ml-100k` that you have: `u.data`, and `u1.base`, `u1.test` and so on, which hold 80,000 and 20,000 of its
ratings. A fit with `observed="stored"` sees the first and predicts the second. Printed for each likelihood and fold,
and as means: RMSE of the expected rating, not clipped and clipped to the range of the ratings; minus the mean log
probability of the rating that was given, which a Normal gives to the half star on either side of it; and seconds of
fitting. Without `--tol` fits stop by their default.

Beside them stand figures published for fold 3: rank 8, factorisation machines of users and films alone by variational
Bayes with grouped priors and by Gibbs sampling, and an ordered probit; rank 10, Gibbs sampling with grouped priors and
an ordered probit, from the documentation of myFM (https://myfm.readthedocs.io).
"""

import argparse
import time
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import scipy.sparse as sp
from levels import LEVELS, probabilities

import scvi_lfm as lfm

PUBLISHED = (
    "rank 8: variational RMSE 0.8999, Gibbs RMSE 0.8926, ordered probit log loss 1.2289",
    "rank 10: Gibbs RMSE 0.8925, ordered probit RMSE 0.8906",
)
LIKELIHOODS = ("normal", "ordinal")


def with_fold(adata: ad.AnnData, folder: Path, fold: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, columns and ratings of a published test set, which the layer `held_out` then marks."""
    test = lfm.datasets.movielens(folder / f"u{fold}.test")
    seen = test.X.tocoo()
    row = adata.obs_names.get_indexer(test.obs_names)[seen.row]
    column = adata.var_names.get_indexer(test.var_names)[seen.col]
    held = sp.csr_matrix((np.ones(len(row), dtype=bool), (row, column)), shape=adata.shape)
    adata.layers["held_out"] = held
    return row, column, seen.data


def figures(adata: ad.AnnData, likelihood: str, held: tuple[np.ndarray, ...], args: argparse.Namespace) -> list[float]:
    """RMSE, RMSE when clipped, log loss, seconds."""
    row, column, y = held
    stop = {} if args.tol is None else {"tol": args.tol}
    names = {"obs_names": adata.obs_names[row], "var_names": adata.var_names[column], "pairs": True}
    start = time.perf_counter()
    lfm.tl.fit(
        adata,
        args.factors,
        likelihood=likelihood,
        observed="stored",
        held_out="held_out",
        rng=args.seed,
        progress=False,
        **stop,
    )
    seconds = time.perf_counter() - start
    table = lfm.tl.predict(adata, quantiles=[], **names)
    given = probabilities(likelihood, table)[np.arange(len(y)), np.searchsorted(LEVELS, y)]
    expected = table["expected"].to_numpy()
    errors = [np.sqrt(np.mean((x - y) ** 2)) for x in (expected, expected.clip(LEVELS[0], LEVELS[-1]))]
    return [*errors, -np.log(given).mean(), seconds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--folds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--factors", type=int, default=8)
    parser.add_argument("--tol", type=float)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")  # films of which no rating is left
    adata = lfm.datasets.movielens(args.folder)
    rows: dict[str, list[list[float]]] = {likelihood: [] for likelihood in LIKELIHOODS}
    print(f"{'':18}{'RMSE':>8}{'clipped':>9}{'log loss':>10}{'seconds':>9}")
    for fold in args.folds:
        held = with_fold(adata, args.folder, fold)
        for likelihood in LIKELIHOODS:
            rows[likelihood].append(figures(adata, likelihood, held, args))
            show(f"{likelihood}, fold {fold}", rows[likelihood][-1])
    for likelihood in LIKELIHOODS:
        show(f"{likelihood}, mean", np.mean(rows[likelihood], axis=0))
    print("published for fold 3:", *PUBLISHED, sep="\n")


def show(name: str, found: list[float] | np.ndarray) -> None:
    """Print a line."""
    rmse, clipped, log_loss, seconds = found
    print(f"{name:18}{rmse:8.4f}{clipped:9.4f}{log_loss:10.4f}{seconds:9.1f}", flush=True)


if __name__ == "__main__":
    main()
