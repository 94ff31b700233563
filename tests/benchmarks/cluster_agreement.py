"""How far a fit on a Dask cluster agrees with one from memory, and two from memory in other blocks of cells.

    python tests/benchmarks/cluster_agreement.py [--cells 4000] [--genes 300] [--workers 2 4] [--chunk 300]
        [--fits shared gene cell_gene stored negative_binomial] [--blocks 300]

Simulated values of 4 factors. A row has, for each array that a fit stores, the norm of the difference over the norm,
and in brackets the worst entry over the largest one. `memory` compares blocks of `--blocks` cells with those of the
package: what any other order of sums makes of a fit. A number of workers compares a `LocalCluster` of so many
processes, one thread each, with `--chunk` cells in a chunk.
"""

import argparse
import warnings

import anndata as ad
import dask.array as da
import distributed
import numpy as np
import scipy.sparse as sp

import scvi_lfm as lfm
from scvi_lfm.data import blocks, cluster, gate
from scvi_lfm.inference.observed import engine

FITS = {
    "shared": {"layer": "logs", "noise": "shared"},
    "gene": {"layer": "logs", "noise": "gene"},
    "cell_gene": {"layer": "logs", "noise": "cell_gene"},
    "stored": {"layer": "logs", "observed": "stored"},
    "negative_binomial": {"likelihood": "negative_binomial"},
}
SHOWN = {
    "embeddings": lambda adata: adata.obsm["X_lfm"],
    "loadings": lambda adata: adata.varm["lfm"],
    "activity": lambda adata: adata.obs["lfm_a"],
    "noise": lambda adata: adata.var["lfm_theta" if "lfm_theta" in adata.var else "lfm_sigma"],
    "ELBO": lambda adata: adata.uns["lfm"]["elbo"]["value"][-1:],
}


def simulated(n_cells: int, n_genes: int) -> ad.AnnData:
    """Counts, and logarithms of them with some noise as a layer."""
    counts = lfm.datasets.simulate(n_cells, n_genes, 4, likelihood="negative_binomial", mu=0.0)
    adata = ad.AnnData(sp.csr_matrix(counts.X, dtype=np.float32))
    logs = adata.X.copy()
    logs.data = (np.log1p(logs.data) + np.random.default_rng(4).normal(0, 0.1, logs.nnz)).astype(np.float32)
    adata.layers["logs"] = logs
    return adata


def in_chunks(adata: ad.AnnData, size: int) -> ad.AnnData:
    """The same with values as dask arrays."""
    chunked = adata.copy()
    chunked.X, chunked.layers["logs"] = (
        da.from_array(values, chunks=(size, -1), asarray=False) for values in (adata.X, adata.layers["logs"])
    )
    return chunked


def fitted(adata: ad.AnnData, name: str) -> dict[str, np.ndarray]:
    """What a fit stores."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lfm.tl.fit(adata, 4, progress=False, **FITS[name])
    return {what: np.asarray(find(adata), dtype=np.float64) for what, find in SHOWN.items()}


def row(name: str, where: str, found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> str:
    """A row of the table."""
    cells = []
    for what, values in expected.items():
        moved = found[what] - values
        norm = np.linalg.norm(moved) / np.linalg.norm(values)
        cells.append(f"{norm:.1e} ({np.abs(moved).max() / np.abs(values).max():.1e})")
    return " | ".join(["", name, where, *cells, ""]).strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, size in {"cells": 4000, "genes": 300, "chunk": 300, "blocks": 300}.items():
        parser.add_argument(f"--{option}", type=int, default=size)
    parser.add_argument("--workers", type=int, nargs="*", default=[2, 4])
    parser.add_argument("--fits", nargs="+", default=list(FITS), choices=list(FITS))
    args = parser.parse_args()
    adata = simulated(args.cells, args.genes)
    from_memory = {name: fitted(adata.copy(), name) for name in args.fits}
    print(" | ".join(["| fit", "where", *SHOWN, ""]).strip())
    print("|---" * (2 + len(SHOWN)) + "|", flush=True)
    before = blocks.CELLS_PER_BLOCK, engine.CELLS_PER_BLOCK
    blocks.CELLS_PER_BLOCK = engine.CELLS_PER_BLOCK = args.blocks
    for name in args.fits:
        print(row(name, "memory", fitted(adata.copy(), name), from_memory[name]), flush=True)
    blocks.CELLS_PER_BLOCK, engine.CELLS_PER_BLOCK = before
    # so few values would be read into memory, and worked on without a cluster
    gate.MOST_BYTES_READ_IN, cluster.LEAST_CELLS = -1, args.chunk
    for n_workers in args.workers:
        with (
            distributed.LocalCluster(n_workers=n_workers, threads_per_worker=1, dashboard_address=":0") as local,
            distributed.Client(local),
        ):
            for name in args.fits:
                found = fitted(in_chunks(adata, args.chunk), name)
                print(row(name, f"{n_workers} workers", found, from_memory[name]), flush=True)


if __name__ == "__main__":
    main()
