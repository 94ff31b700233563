"""What entries held out of a fit to all of them cost, and whether every row has the posterior that it should.

    python tests/benchmarks/held_out.py DATA.h5ad [--share 0.05] [--factors 30] [--sweeps 10]

DATA holds raw counts, which are log-normalised here. A share of the stored entries and as many zeros are held out. The
time of a sweep is the difference between fits of few and of `--sweeps` more epochs with all cells in a batch, with and
without the mask, in turns, the fastest of each kind; wanted: at most 10 times. Posterior means and covariances of
(a, A) of 200 random cells under the stored genes are compared with a solve of each cell by itself in float64: the
largest norm of a difference over the norm; wanted: 1e-5.
"""

import argparse
import time
import warnings

import anndata as ad
import numpy as np
import scanpy as sc
import scipy.sparse as sp

import scvi_lfm as lfm

CELLS = 200


def full(packed: np.ndarray) -> np.ndarray:
    k = int(np.sqrt(2 * packed.shape[1]))
    rows, columns = np.tril_indices(k)
    matrices = np.empty((len(packed), k, k))
    matrices[:, rows, columns] = matrices[:, columns, rows] = packed
    return matrices


def seconds(adata: ad.AnnData, args: argparse.Namespace, epochs: int, **options: object) -> float:
    start = time.perf_counter()
    lfm.tl.fit(
        adata,
        args.factors,
        likelihood="normal",
        batch_size=adata.n_obs,
        max_epochs=epochs,
        tol=1e-12,
        progress=False,
        device=args.device,
        copy=True,
        **options,
    )
    return time.perf_counter() - start


def differences(adata: ad.AnnData) -> tuple[float, float]:
    """Largest relative differences of means and covariances of cells from a solve of each by itself."""
    fit, held = adata.uns["lfm"], adata.layers["held_out"].tocsr()
    genes = np.column_stack([adata.var["lfm_b"], adata.varm["lfm"]]).astype(float)
    sigma = adata.var["lfm_sigma"].to_numpy(float)
    # stored covariances of genes belong to the noise for predicting; the fit's own is shared
    prior_of_genes = np.linalg.inv(fit["prior_gene_cov"])
    T = np.linalg.inv(
        prior_of_genes
        + (np.linalg.inv(full(adata.varm["lfm_cov"].astype(float))) - prior_of_genes)
        * (sigma / fit["sigma"])[:, None, None] ** 2
    )
    v = genes.copy()
    v[:, 0] = 1
    vv = v[:, :, None] * v[:, None]
    vv[:, 1:, 1:] += T[:, 1:, 1:]
    bv = genes[:, :1] * v
    bv[:, 1:] += T[:, 0, 1:]
    precision, w = np.linalg.inv(fit["prior_cell_cov"]), fit["sigma"] ** -2
    pull = precision @ fit["prior_cell_mean"]
    found = np.column_stack([adata.obs["lfm_a"], adata.obsm["X_lfm"]]).astype(float)
    worst = [0.0, 0.0]
    some = np.random.default_rng(0).choice(adata.n_obs, min(CELLS, adata.n_obs), replace=False)
    covs = full(adata.obsm["lfm_cov"][some].astype(float))
    for i, cov in zip(some, covs, strict=True):
        seen = ~held[[i]].toarray()[0]
        y = adata.X[[i]].toarray()[0][seen].astype(float)
        S = np.linalg.inv(precision + w * vv[seen].sum(0))
        mean = S @ (pull + w * ((y - fit["mu"]) @ v[seen] - bv[seen].sum(0)))
        worst[0] = max(worst[0], np.linalg.norm(mean - found[i]) / np.linalg.norm(mean))
        worst[1] = max(worst[1], np.linalg.norm(S - cov) / np.linalg.norm(S))
    return worst[0], worst[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--factors", type=int, default=30)
    parser.add_argument("--sweeps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    adata = ad.read_h5ad(args.data)
    sc.pp.filter_genes(adata, min_cells=1)
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    adata.X = sp.csr_matrix(adata.X)
    lfm.tl.hold_out(adata, args.share)
    n_held = adata.layers["held_out"].sum()
    print(f"{adata.n_obs} cells x {adata.n_vars} genes, {adata.X.nnz} stored, {n_held} held out, r = {args.factors}")
    fits = {"all": {}, "held out": {"held_out": "held_out"}}
    times = {(name, epochs): [] for name in fits for epochs in (2, 2 + args.sweeps)}
    for _ in range(args.repeats):
        for name, epochs in times:
            times[name, epochs].append(seconds(adata, args, epochs, **fits[name]))
    least = {name: (min(times[name, 2 + args.sweeps]) - min(times[name, 2])) / args.sweeps for name in fits}
    ratio = least["held out"] / least["all"]
    print(
        "a sweep, seconds: " + ", ".join(f"{name} {value:.3f}" for name, value in least.items()), f"({ratio:.1f} times)"
    )
    lfm.tl.fit(
        adata, args.factors, likelihood="normal", held_out="held_out", max_epochs=5, progress=False, device=args.device
    )
    mean, cov = differences(adata)
    print(f"largest difference from a solve of each cell: means {mean:.1e}, covariances {cov:.1e}")


if __name__ == "__main__":
    main()
