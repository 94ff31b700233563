"""Simulate the large benchmark data set: Poisson counts of cell types with low-rank structure, log-normalised.

    python tests/benchmarks/simulated_counts.py OUT.h5ad [--cells 50000] [--genes 15000] [--depth 3000] [--raw]

Every cell belongs to one of 12 types; the types lie in a space of 15 factors, cells scatter around their type, and each
cell holds about 3,000 counts. The counts are then scaled to 10,000 a cell and log1p transformed, as most users do,
unless they are asked for as they are.
"""

import argparse

import anndata as ad
import numpy as np
import scanpy as sc
import scipy.sparse as sp


def simulate_counts(
    n_cells: int, n_genes: int, *, n_types: int = 12, n_factors: int = 15, depth: float = 3000.0, seed: int = 0
) -> ad.AnnData:
    """Draw Poisson counts by blocks of cells, so that memory stays at the size of the sparse result."""
    rng = np.random.default_rng(seed)
    abundance = rng.normal(0.0, 2.2, n_genes)
    loadings = rng.normal(0.0, 1.0, (n_factors, n_genes)) * np.linspace(0.35, 0.1, n_factors)[:, None]
    centers = rng.normal(0.0, 1.0, (n_types, n_factors))
    types = rng.choice(n_types, n_cells, p=rng.dirichlet(np.full(n_types, 5.0)))
    cells = centers[types] + rng.normal(0.0, 0.5, (n_cells, n_factors))
    depths = depth * rng.lognormal(-0.08, 0.4, n_cells)
    blocks = []
    for start in range(0, n_cells, 1000):
        rows = slice(start, start + 1000)
        rate = np.exp(abundance + cells[rows] @ loadings).astype(np.float32)
        rate *= (depths[rows] / rate.sum(axis=1))[:, None]
        blocks.append(sp.csr_matrix(rng.poisson(rate).astype(np.float32)))
    adata = ad.AnnData(sp.vstack(blocks, format="csr"))
    adata.obs["cell_type"] = np.char.add("type_", types.astype(str))
    return adata


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out")
    parser.add_argument("--cells", type=int, default=50_000)
    parser.add_argument("--genes", type=int, default=15_000)
    parser.add_argument("--depth", type=float, default=3000.0)
    parser.add_argument("--raw", action="store_true")
    args = parser.parse_args()
    adata = simulate_counts(args.cells, args.genes, depth=args.depth)
    if not args.raw:
        sc.pp.normalize_total(adata, target_sum=1e4)
        sc.pp.log1p(adata)
    adata.write_h5ad(args.out)
    print(f"{args.out}: {adata.n_obs} x {adata.n_vars}, {adata.X.nnz / 1e6:.1f}M non-zeros")


if __name__ == "__main__":
    main()
