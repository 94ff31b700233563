r"""Are posteriors as wide as they should be? Simulation-based calibration (Talts et al. 2018, arXiv:1804.06788).

    python tests/benchmarks/sbc.py [--repetitions 200] [--n-cells 60] [--n-genes 50] [--draws 199] [--first-seed 0]
        [--likelihoods normal negative_binomial] [--families row_block mean_field]

Each repetition draws a, A, b and B from the prior of the model, with scales that the fit is told too, and values from
them; fits to convergence; and ranks the truth among draws of `tl.sample_posterior`. Were the posterior exact, ranks
would be uniform. Two kinds of quantities are ranked, because no gauge changes them:

eta      ten entries, of ten cells and ten genes
score    for ten other genes, the mean of eta over 20 cells minus that over the other 40: what `tl.rank_genes` ranks by

Left out: mu has a prior so wide that counts drawn from it could not be stored, and no posterior that `fit` would
report; every repetition has the same mu. Sigma of the Normal likelihood is held at the truth, and theta of the negative
binomial is estimated: neither has a posterior. Size factors are given.

coverage   share of truths in the central 50 % and 90 % intervals of the draws, with the standard error between
           repetitions
KS         Kolmogorov-Smirnov distance of the ranks from a uniform
chi2 p     of the ranks in 20 bins, as if they were independent; quantities of one repetition are nearly so
spread     root mean square of (truth - posterior mean) / posterior standard deviation; 1 if the widths are right
"""

import argparse
import time
import warnings
from collections.abc import Iterator
from typing import Any

import anndata as ad
import numpy as np
import scipy.stats

import scvi_lfm as lfm

SCALES: dict[str, Any] = {"a": 0.3, "A": 1.0, "b": 0.7, "B": np.array([0.8, 0.5])}
MU, SIGMA, THETA, DEPTH_SPREAD = 1.0, 1.0, 5.0, 0.3
N_EACH, N_OF_SET = 10, 20
BINS, TOL, MAX_EPOCHS = 20, 1e-5, 1000


def draw_data(likelihood: str, n_cells: int, n_genes: int, seed: int) -> ad.AnnData:
    """Parameters from the prior, and values from them."""
    noise = {"sigma": SIGMA} if likelihood == "normal" else {"theta": THETA, "depth_spread": DEPTH_SPREAD}
    return lfm.datasets.simulate(
        n_cells,
        n_genes,
        len(SCALES["B"]),
        likelihood=likelihood,
        mu=MU,
        cell_scale=SCALES["a"],
        gene_scale=SCALES["b"],
        factor_scales=SCALES["B"],
        rng=seed,
        **noise,
    )


def fit(adata: ad.AnnData, likelihood: str, family: str) -> None:
    normal = likelihood == "normal"
    lfm.tl.fit(
        adata,
        len(SCALES["B"]),
        likelihood=likelihood,
        family=family,
        prior_scales=SCALES | ({"sigma": SIGMA} if normal else {}),
        size_factors=None if normal else "size_factor",
        tol=TOL,
        max_epochs=MAX_EPOCHS,
        progress=False,
    )


def quantities(latents: dict[str, np.ndarray]) -> Iterator[np.ndarray]:
    """Entries of eta and scores, (..., N_EACH) each, from latents with any leading axes."""
    mu, a, A, b, B = (np.asarray(latents[name], dtype=float) for name in ("mu", "a", "A", "b", "B"))
    some, others = slice(0, N_EACH), slice(N_EACH, 2 * N_EACH)
    yield mu + a[..., some] + b[..., some] + (A[..., some, :] * B[..., some, :]).sum(-1)
    members = np.arange(a.shape[-1]) < N_OF_SET
    contrast = members / members.sum() - ~members / (~members).sum()
    yield (a @ contrast)[..., None] + np.einsum("...ik,i,...jk->...j", A, contrast, B[..., others, :])


def one_repetition(adata: ad.AnnData, n_draws: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Place of each truth among the draws, in (0, 1), and its distance from their mean in their standard deviations."""
    truth = {
        "mu": adata.uns["mu"],
        "a": adata.obs["a"],
        "A": adata.obsm["A"],
        "b": adata.var["b"],
        "B": adata.varm["B"],
    }
    drawn = quantities(lfm.tl.sample_posterior(adata, n_draws, rng=seed))
    for true, several in zip(quantities(truth), drawn, strict=True):
        rank = (several < true).sum(0)
        yield (rank + 0.5) / (n_draws + 1), (true - several.mean(0)) / several.std(0)


def describe(places: np.ndarray, distances: np.ndarray) -> str:
    """Figures for one kind of quantity, from (repetitions, N_EACH)."""
    words = []
    for level in (0.5, 0.9):
        held = (np.abs(places - 0.5) < level / 2).mean(1)
        words.append(f"{held.mean():8.3f} +- {held.std(ddof=1) / np.sqrt(len(held)):.3f}")
    ks = scipy.stats.kstest(places.ravel(), "uniform").statistic
    counts = np.histogram(places, BINS, (0, 1))[0]
    p = scipy.stats.chisquare(counts).pvalue
    return f"{''.join(words)} {ks:8.3f} {p:10.2g} {np.sqrt((distances**2).mean()):8.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--n-cells", type=int, default=60)
    parser.add_argument("--n-genes", type=int, default=50)
    parser.add_argument("--draws", type=int, default=199)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--likelihoods", nargs="+", default=["normal", "negative_binomial"])
    parser.add_argument("--families", nargs="+", default=["row_block", "mean_field"])
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    print(f"{args.n_cells} x {args.n_genes}, 2 factors, {args.repetitions} repetitions of {args.draws} draws")
    print(f"{'':38s}{'50 % intervals':>17s}{'90 % intervals':>17s}{'KS':>9s}{'chi2 p':>11s}{'spread':>9s}")
    for likelihood in args.likelihoods:
        for family in args.families:
            start = time.perf_counter()
            found: dict[str, list] = {"eta": [], "score": []}
            n_unfinished = 0
            for seed in range(args.first_seed, args.first_seed + args.repetitions):
                adata = draw_data(likelihood, args.n_cells, args.n_genes, seed)
                fit(adata, likelihood, family)
                n_unfinished += not adata.uns["lfm"]["converged"]
                for kind, result in zip(found, one_repetition(adata, args.draws, seed), strict=True):
                    found[kind].append(result)
            for kind, results in found.items():
                places, distances = (np.array(part) for part in zip(*results, strict=True))
                print(f"{likelihood:18s} {family:11s} {kind:6s} {describe(places, distances)}", flush=True)
            seconds = time.perf_counter() - start
            print(f"    {n_unfinished} fits ended by {MAX_EPOCHS} epochs, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
