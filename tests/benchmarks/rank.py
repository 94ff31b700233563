"""How many factors does `n_factors="auto"` find where their number is known?

    python tests/benchmarks/rank.py [--seeds 20] [--sizes 2000x1000 10000x5000] [--noise shared]
    python tests/benchmarks/rank.py --counts [--seeds 5] [--sizes 1500x800]
    python tests/benchmarks/rank.py --totals [--known] [--likelihood poisson] [--factors 4 0] [--sizes 800x300 3000x600]
    python tests/benchmarks/rank.py --data COUNTS.h5ad [--likelihood normal negative_binomial]

Twelve factors in unit noise, their singular values falling evenly from 2.5 times the weakest to it, and data without
factors. In units of sigma sqrt(n) noise alone has singular values up to 1 + sqrt(m/n), and a factor shows beyond them
if its own singular value is above (m/n)^(1/4). Three weakest factors:

    true      its singular value is 1.5 (1 + sqrt(m/n))
    observed  it is so large that 1.5 (1 + sqrt(m/n)) is what a singular value decomposition of the data shows
    detect    it is 1.5 (m/n)^(1/4): the ELBO asks for more than that, so this one may be missed

With `--counts`, negative binomial counts of five factors with loadings of standard deviation 0.3, and of none.

With `--totals`, counts of many molecules a cell, of four factors with loadings of standard deviation 0.4, ..., 0.2, and
of none. Size factors are total counts, as by default, and with so many molecules depend on a cell's factors too;
`--known` gives the true ones instead. Here one factor too many or too few is wrong.

With `--data`, what it gives on counts of a file (`shipped` takes the data set of the package), log-normalised for the
Normal.
"""

import argparse
import time
import warnings
from collections.abc import Iterator

import anndata as ad
import numpy as np
import scanpy as sc

import scvi_lfm as lfm

TRUE = 12
# mean log rates with `--totals`
LEVELS = {"negative_binomial": -0.5, "poisson": 0.5}


def weakest(reading: str, ratio: float) -> float:
    """Singular value of the weakest factor, in units of sigma sqrt(n); `ratio` is m/n."""
    edge = 1.5 * (1 + np.sqrt(ratio))
    if reading == "true":
        return edge
    if reading == "observed":  # observed^2 = (1 + t^2)(1 + ratio / t^2), Benaych-Georges & Nadakuditi 2012
        middle = edge**2 - 1 - ratio
        return np.sqrt((middle + np.sqrt(middle**2 - 4 * ratio)) / 2)
    return 1.5 * ratio**0.25


def simulate(n: int, m: int, singular_values: np.ndarray, seed: int) -> ad.AnnData:
    """Margins, factors of these singular values over sqrt(n), and unit noise."""
    rng = np.random.default_rng(seed)
    y = rng.standard_normal((n, m), dtype=np.float32)
    y += rng.normal(0.5, 0.3, (n, 1)).astype(np.float32) + rng.normal(size=m).astype(np.float32)
    if len(singular_values):
        A = np.linalg.qr(rng.normal(size=(n, len(singular_values))))[0] * np.sqrt(n) * singular_values
        B = np.linalg.qr(rng.normal(size=(m, len(singular_values))))[0]
        y += A.astype(np.float32) @ B.T.astype(np.float32)
    return ad.AnnData(y)


def auto(adata: ad.AnnData, **options: object) -> tuple[int, float]:
    """The number chosen, and seconds."""
    start = time.perf_counter()
    lfm.tl.fit(adata, "auto", progress=False, **options)
    return int(adata.uns["lfm"]["params"]["n_factors"]), time.perf_counter() - start


def cases(n: int, m: int, *, counts: bool) -> Iterator[tuple[str, int, object]]:
    """Name, true number, and a function of the seed that draws the data."""
    if counts:
        for r in (5, 0):
            scales = [0.3] * r or [0.0]
            yield (
                f"counts {r}",
                r,
                lambda seed, s=scales: lfm.datasets.simulate(
                    n, m, len(s), likelihood="negative_binomial", factor_scales=s, rng=seed
                ),
            )
        return
    for reading in ("true", "observed", "detect"):
        values = weakest(reading, m / n) * np.linspace(2.5, 1, TRUE)
        yield reading, TRUE, lambda seed, v=values: simulate(n, m, v, seed)
    yield "none", 0, lambda seed: simulate(n, m, np.zeros(0), seed)


def cases_of_totals(n: int, m: int, likelihoods: list[str], numbers: list[int]) -> Iterator[tuple[str, int, object]]:
    """The same for counts of many molecules a cell."""
    for likelihood in likelihoods:
        for r in numbers:
            scales = {"n_factors": r} if r else {"n_factors": 1, "factor_scales": [0.0]}
            yield (
                likelihood,
                r,
                lambda seed, name=likelihood, s=scales: lfm.datasets.simulate(
                    n, m, likelihood=name, mu=LEVELS[name], rng=seed, **s
                ),
            )


def on_data(path: str, likelihoods: list[str]) -> None:
    """What is chosen on the counts of a file."""
    adata = lfm.datasets.pbmc_sorted() if path == "shipped" else ad.read_h5ad(path)
    adata.layers["counts"] = adata.X.copy()
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    for likelihood in likelihoods:
        layer = None if likelihood == "normal" else "counts"
        found, seconds = auto(adata, likelihood=likelihood, layer=layer)
        tried = adata.uns["lfm"]["params"]["max_factors"]
        effective = lfm.get.rank_df(adata).set_index("n_factors")["effective"][found]
        print(f"{likelihood:18} {found} of {tried} tried, {effective:.1f} effective, {seconds:.1f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--sizes", nargs="+", default=["2000x1000", "10000x5000"])
    parser.add_argument("--noise", default="shared", choices=["shared", "gene"])
    parser.add_argument("--counts", action="store_true")
    parser.add_argument("--totals", action="store_true")
    parser.add_argument("--known", action="store_true")
    parser.add_argument("--factors", nargs="+", type=int, default=[4, 0])
    parser.add_argument("--data")
    parser.add_argument("--likelihood", nargs="+", default=None)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    if args.data:
        on_data(args.data, args.likelihood or ["normal", "negative_binomial"])
        return
    options = {} if args.counts else {"noise": args.noise}
    if args.totals:
        options = {"size_factors": "size_factor"} if args.known else {}
    for size in args.sizes:
        n, m = map(int, size.split("x"))
        drawn = cases(n, m, counts=args.counts)
        if args.totals:
            drawn = cases_of_totals(n, m, args.likelihood or list(LEVELS), args.factors)
        for name, true, draw in drawn:
            if args.totals:
                options["likelihood"] = name
            runs = [auto(draw(seed), **options) for seed in range(args.seeds)]
            found = [number for number, _ in runs]
            near = sum(abs(number - true) <= (1 if true and not args.totals else 0) for number in found)
            seconds = np.median([took for _, took in runs])
            print(
                f"{size:12} {name:10} true {true:2}  as asked {near}/{len(found)}  {seconds:.1f} s  {found}", flush=True
            )


if __name__ == "__main__":
    main()
