"""Make the data set that ships with the package from the full one.

    python tests/benchmarks/make_pbmc_sorted.py FULL.h5ad scvi_lfm/datasets/pbmc_sorted.h5ad

FULL.h5ad holds `data/pbmc_facs.RData` of the R package fastTopics (commit 8406f5f4): its `counts` and `counts_test`
in X (3,874 cells x 16,791 genes), the sorted type of each cell in obs["facs_celltype"] and the gene identifiers in
var["ensembl_id"]. Equal numbers of cells of each sorted type are drawn, in the order in which they stand, and the
genes detected in at least three of them are kept.
"""

import argparse
from pathlib import Path

import anndata as ad
import h5py
import numpy as np

CELLS_PER_TYPE = 120
MIN_CELLS = 3
SEED = 0
SOURCE = {
    "publication": "Zheng et al. 2017, Nat Commun 8:14049, doi:10.1038/ncomms14049",
    "taken_from": "R package fastTopics, data/pbmc_facs.RData, commit 8406f5f4de379e7ff8b43ecfee93cca42a8e7a57",
    "license": "BSD-2-Clause",
    "caution": "each sorted type was its own library: type and library are confounded",
}


def subset(full: ad.AnnData) -> ad.AnnData:
    """Draw the same number of cells of every sorted type and keep the genes that they express."""
    rng = np.random.default_rng(SEED)
    types = full.obs["facs_celltype"]
    drawn = [rng.choice(np.flatnonzero(types == name), CELLS_PER_TYPE, replace=False) for name in types.cat.categories]
    cells = full[np.sort(np.concatenate(drawn))]
    detected = np.asarray((cells.X > 0).sum(axis=0)).ravel()
    kept = cells[:, detected >= MIN_CELLS]
    return ad.AnnData(
        kept.X.astype(np.float32),
        obs=kept.obs[["facs_celltype", "facs_subpop"]].copy(),
        var=kept.var[["ensembl_id"]].copy(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("full", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    adata = subset(ad.read_h5ad(arguments.full))
    # The byte shuffle saves a tenth of the file; `write_h5ad` has no argument for it, and text takes no filter.
    with h5py.File(arguments.out, "w") as file:
        filters = {"compression": "gzip", "compression_opts": 9, "shuffle": True}
        ad.io.write_elem(file, "/", adata, dataset_kwargs=filters)
        ad.io.write_elem(file, "uns/source", SOURCE)
    size = arguments.out.stat().st_size
    print(f"{arguments.out}: {adata.n_obs} x {adata.n_vars}, {adata.X.nnz} non-zeros, {size} bytes")


if __name__ == "__main__":
    main()
