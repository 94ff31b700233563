"""`tl.similar_genes`: neighbours of a gene in the embedding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from .._memory import naming_memory
from .._validate import check_anndata, check_count
from ._open import open_fit
from ._rank_cells import fitted_positions
from ._tool import tool

if TYPE_CHECKING:
    from anndata import AnnData
    from torch import Tensor

    from ..posterior import Posterior


@tool
def similar_genes(adata: AnnData, gene: str, *, n_top: int = 20, key: str = "lfm") -> pd.DataFrame:
    r"""Genes whose expected expression goes with that of `gene` across cells.

    With :math:`P_{AA}` the covariance of A in the fitted population of cells, genes j and l have

    .. math::

        \mathrm{cov}_{jl} = B_j' P_{AA} B_l, \qquad
        \mathrm{corr}_{jl} = \frac{\mathrm{cov}_{jl}}{\sqrt{E[B_j' P_{AA} B_j] \, E[B_l' P_{AA} B_l]}}

    The expectations hold the posterior variance of B, which draws genes about which little is known towards zero.

    Parameters
    ----------
    adata
        Annotated data with a fit (:func:`scvi_lfm.tl.fit`).
    gene
        A name of `var_names` that was fitted.
    n_top
        Number of genes to return, in decreasing order of correlation.
    key
        Stem under which the fit is stored.

    Returns
    -------
    A data frame with columns `names`, `correlation` and `covariance` (in squared units of the data), n_top rows.
    `gene` itself is left out.

    Raises
    ------
    KeyError
        There is no such fit or gene.
    ValueError
        The gene was left out of the fit.

    Examples
    --------
    >>> import scvi_lfm as lfm
    >>> adata = lfm.datasets.simulate(n_cells=200, n_genes=50, n_factors=3)
    >>> lfm.tl.fit(adata, n_factors=3, progress=False)
    >>> lfm.tl.similar_genes(adata, "gene_0", n_top=5).shape
    (5, 3)
    """
    check_anndata(adata)
    n_top = check_count("n_top", n_top)
    if not isinstance(gene, str):
        msg = f"`gene` must be one name of var_names, found {gene!r}."
        raise TypeError(msg)
    stored = open_fit(adata, key, cells=False)
    position = int(fitted_positions(adata, "gene", gene, stored.fitted)[0])
    return _neighbours(stored.posterior, position, n_top, adata.var_names.to_numpy()[stored.fitted])


@naming_memory("compare the genes")
def _neighbours(q: Posterior, position: int, n_top: int, names: np.ndarray) -> pd.DataFrame:
    first = 1 + q.n_known
    population = q.cell_prior.cov[first:, first:]
    B, variance = q.gene_factors, population_variances(q)
    covariance = B @ (population @ B[position])
    correlation = covariance / (variance * variance[position]).clamp_min(torch.finfo(variance.dtype).tiny).sqrt()
    order = np.argsort(-correlation.numpy(), kind="stable")
    order = order[order != position][:n_top]
    return pd.DataFrame(
        {
            "names": names[order],
            "correlation": correlation.numpy()[order],
            "covariance": covariance.numpy()[order],
        }
    )


def population_variances(q: Posterior) -> Tensor:
    """E[B_j' P_AA B_j] of each gene, (m,)."""
    first = 1 + q.n_known
    inner = q.cell_prior.cov.clone()
    inner[:first], inner[:, :first] = 0, 0
    B = q.gene_factors
    return ((B @ inner[first:, first:]) * B).sum(1) + q.gene_cov.inner(inner)
