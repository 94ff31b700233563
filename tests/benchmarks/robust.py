"""What outliers cost the Normal and the Student t: values simulated from the model, with three kinds of noise.

    python tests/benchmarks/robust.py [--cells 400] [--genes 100] [--seeds 3]

Three factors, noise of scale one: Normal, Student t with 3 degrees of freedom, or Normal with one value in a hundred
off by 15. Printed as means over seeds: the root mean square error of eta, how much of it 90 % intervals of eta cover,
the scale that was learned, the degrees of freedom, and seconds.
"""

import argparse
import time
import warnings

import anndata as ad
import numpy as np

import scvi_lfm as lfm

FITS = {"normal": "natural_gradient", "student_t": "pyro"}


def simulated(kind: str, args: argparse.Namespace, seed: int) -> tuple[ad.AnnData, np.ndarray]:
    """Values with noise of a kind, and eta."""
    options = {"factor_scales": [1.5, 1.0, 0.7], "mu": 1.0, "sigma": 1.0, "rng": seed}
    adata = lfm.datasets.simulate(args.cells, args.genes, 3, **options)
    eta = adata.uns["mu"] + adata.obs["a"].to_numpy()[:, None] + adata.var["b"].to_numpy()
    eta = eta + adata.obsm["A"] @ adata.varm["B"].T
    rng = np.random.default_rng(seed)
    noise = rng.standard_t(3, eta.shape) if kind == "Student t, 3" else rng.standard_normal(eta.shape)
    if kind == "1 % outliers":
        noise += 15 * rng.choice([-1, 0, 1], eta.shape, p=[0.005, 0.99, 0.005])
    adata.X = (eta + noise).astype(np.float32)
    return adata, eta


def measured(adata: ad.AnnData, eta: np.ndarray, likelihood: str) -> list[float]:
    start = time.perf_counter()
    lfm.tl.fit(adata, 3, likelihood=likelihood, engine=FITS[likelihood], progress=False)
    seconds = time.perf_counter() - start
    cells, genes = (list(names) for names in (adata.obs_names, adata.var_names))
    table = lfm.tl.predict(adata, obs_names=cells, var_names=genes, quantiles=[])
    z = (eta.ravel() - table["expected"]) / table["sd"]
    fit = adata.uns["lfm"]
    rmse = np.sqrt(np.mean((eta.ravel() - table["expected"]) ** 2))
    return [rmse, np.mean(np.abs(z) < 1.645), fit["sigma"], fit.get("df", np.inf), seconds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=400)
    parser.add_argument("--genes", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    print(f"{'noise':14} {'likelihood':11} {'RMSE':>6} {'cover':>6} {'sigma':>6} {'df':>6} {'seconds':>8}")
    for kind in ("Normal", "Student t, 3", "1 % outliers"):
        for likelihood in FITS:
            rows = [measured(*simulated(kind, args, seed), likelihood) for seed in range(args.seeds)]
            rmse, cover, sigma, df, seconds = np.mean(rows, axis=0)
            words = f"{rmse:6.3f} {cover:6.3f} {sigma:6.3f} {df:6.1f} {seconds:8.1f}"
            print(f"{kind:14} {likelihood:11} {words}", flush=True)


if __name__ == "__main__":
    main()
