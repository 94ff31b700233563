from __future__ import annotations

from importlib.resources import as_file, files

import anndata as ad

from .._calls import named_arguments


@named_arguments
def pbmc_sorted() -> ad.AnnData:
    """Blood cells of ten types, each purified with antibodies before sequencing (raw counts).

    A subset of the sorted populations of Zheng et al. (2017): 120 cells of each of ten types, and the genes detected in
    at least three of these cells. It ships with the package, so nothing is downloaded.

    Each sorted type was its own sequencing library. Type and library are therefore confounded: part of what tells the
    types apart is the library, not the biology. The purity of the sorted populations differs too; the helper,
    regulatory, naive and memory T cells overlap.

    Returns
    -------
    A new AnnData of 1,200 cells and 11,558 genes:

    `.X` : :class:`scipy.sparse.csr_matrix` (dtype `float32`, shape (1200, 11558))
        Raw counts of unique molecular identifiers, whole numbers.
    `.obs['facs_celltype']` : :class:`pandas.Series` (dtype `category`, shape (1200,))
        Sorted type, ten of them.
    `.obs['facs_subpop']` : :class:`pandas.Series` (dtype `category`, shape (1200,))
        The same in five classes (B cell, CD14+, CD34+, NK cell, T cell).
    `.var['ensembl_id']` : :class:`pandas.Series` (strings, shape (11558,))
        Ensembl identifier; `var_names` are gene symbols, made unique.
    `.uns['source']` : :class:`dict`
        Publication, package it was taken from, licence, and the caution above.

    Notes
    -----
    Zheng et al. (2017), Massively parallel digital transcriptional profiling of single cells, Nature Communications
    8:14049, `doi:10.1038/ncomms14049 <https://doi.org/10.1038/ncomms14049>`__. The counts were taken from the R package
    fastTopics, which is under the BSD-2-Clause licence; its text lies beside the data file.

    Examples
    --------
    >>> import scvi_lfm as lfm
    >>> lfm.datasets.pbmc_sorted().shape
    (1200, 11558)
    """
    with as_file(files(__package__) / "pbmc_sorted.h5ad") as path:
        return ad.read_h5ad(path)
