"""Ratings simulated from the model: the fit against an oracle and against biases alone, and the time of a sweep.

    python tests/benchmarks/ratings_simulated.py [--users 20000] [--items 5000] [--stored 4000000] [--factors 30]
        [--sweeps 4] [--out u.data]

The factors' part of an entry has the variance of the noise, sigma^2 = 1. 10 % of the stored entries are held out. The
oracle knows mu, b, B, sigma and the scales and solves each row exactly from its training entries. Wanted: RMSE at most
3 % above the oracle's, at most half of the excess over sigma that biases alone leave, and 90 % intervals that cover
88-91 %. A sweep is one epoch with all rows in a batch; its time is the difference between two fits over `--sweeps`
epochs, 0 leaves it out. `--out` writes the ratings, rounded to 1..5, in the format of MovieLens 100K, for a smoke run
of `ratings.py` where no real file is at hand.
"""

import argparse
import time
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import scipy.sparse as sp
from ratings_peers import HEADER, Biases, Entries, Predicted, Scores, Truth, oracle

import scvi_lfm as lfm


def simulate(n: int, m: int, n_stored: int, r: int, seed: int) -> tuple[ad.AnnData, Truth]:
    """Draw entries at random and their values from the model."""
    rng = np.random.default_rng(seed)
    truth = Truth(3.5, 0.5 * rng.standard_normal(m), rng.standard_normal((m, r)) / np.sqrt(r), 1.0, 0.4)
    a, A = truth.kappa_a * rng.standard_normal(n), rng.standard_normal((n, r))
    flat = np.empty(0, dtype=np.int64)
    while len(flat) < n_stored:
        flat = np.union1d(flat, rng.integers(n * m, size=n_stored))
    row, column = np.divmod(np.sort(rng.choice(flat, n_stored, replace=False)), m)
    value = truth.mu + a[row] + truth.b[column] + truth.sigma * rng.standard_normal(n_stored)
    for part in np.array_split(np.arange(n_stored), max(n_stored // 1_000_000, 1)):
        value[part] += np.einsum("ek,ek->e", A[row[part]], truth.B[column[part]])
    return ad.AnnData(sp.csr_matrix((value.astype(np.float32), (row, column)), shape=(n, m))), truth


def fit(adata: ad.AnnData, args: argparse.Namespace, **options: object) -> float:
    start = time.perf_counter()
    lfm.tl.fit(
        adata,
        args.factors,
        likelihood="normal",
        observed="stored",
        held_out="held_out",
        rng=args.seed,
        progress=False,
        device=args.device,
        **options,
    )
    return time.perf_counter() - start


def predict(adata: ad.AnnData, test: Entries) -> Predicted:
    table = lfm.tl.predict(
        adata, obs_names=adata.obs_names[test.row], var_names=adata.var_names[test.column], pairs=True, quantiles=[]
    )
    return Predicted(table["expected"].to_numpy(), table["predictive_sd"].to_numpy())


def write_ratings(path: str, entries: Entries) -> None:
    stars = np.clip(np.rint(entries.value), 1, 5).astype(int)
    lines = zip(entries.row + 1, entries.column + 1, stars, strict=True)
    Path(path).write_text("".join(f"{user}\t{movie}\t{star}\t880000000\n" for user, movie, star in lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--items", type=int, default=5_000)
    parser.add_argument("--stored", type=int, default=4_000_000)
    parser.add_argument("--factors", type=int, default=30)
    parser.add_argument("--sweeps", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    adata, truth = simulate(args.users, args.items, args.stored, args.factors, args.seed)
    entries = Entries.of(adata.X)
    if args.out:
        write_ratings(args.out, entries)
        return
    lfm.tl.hold_out(adata, 0.1, observed="stored", rng=args.seed)
    held = np.asarray(adata.layers["held_out"][entries.row, entries.column]).ravel()
    train, test = entries.at(~held), entries.at(held)
    print(f"{args.users} x {args.items}, {len(train.row)} entries to fit, {len(test.row)} held out, r = {args.factors}")
    print(HEADER, flush=True)
    scores = {}
    for name, predicted in (
        ("oracle", lambda: oracle(train, test, truth)),
        ("biases", lambda: Biases.fit(train).predict(test)),
        ("lfm", lambda: (fit(adata, args), predict(adata, test))[1]),
    ):
        start = time.perf_counter()
        scores[name] = Scores.of(predicted(), test.value)
        print(scores[name].line(name, time.perf_counter() - start), flush=True)
    above = scores["lfm"].rmse / scores["oracle"].rmse - 1
    excess = (scores["lfm"].rmse - truth.sigma) / (scores["biases"].rmse - truth.sigma)
    print(f"above the oracle {above:.2%} (wanted 3 %), share of the biases' excess {excess:.3f} (wanted 0.5)")
    if args.sweeps:
        options = {"batch_size": args.users, "tol": 1e-12}
        short, long = (fit(adata, args, max_epochs=epochs, **options) for epochs in (2, 2 + args.sweeps))
        print(f"a sweep of coordinate ascent: {(long - short) / args.sweeps:.2f} s (wanted 2 s)")


if __name__ == "__main__":
    main()
