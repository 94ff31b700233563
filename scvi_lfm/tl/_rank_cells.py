"""`tl.rank_cells`: which cells express these genes, the search of `tl.rank_genes` the other way round."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from .._validate import check_anndata, locate
from ..posterior.contrast import contrast_cells
from ._open import open_fit
from ._overwriting import check_free, write_fields
from ._tool import tool

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData


@tool
def rank_cells(
    adata: AnnData,
    genes: str | Sequence[str],
    *,
    key: str = "lfm",
    key_added: str = "rank_cells_lfm",
    copy: bool = False,
) -> AnnData | None:
    r"""Score cells by how well they align with chosen genes.

    .. math:: \mathrm{score}_i = A_i \cdot \mathrm{mean}_{j \in \mathcal G} B_j

    is the mean over the genes of expected eta beyond what the cell's activity and the genes' abundance say. It is zero
    on average over the cells of the fit.

    Parameters
    ----------
    adata
        Annotated data with a fit (:func:`scvi_lfm.tl.fit`).
    genes
        One or several names of `var_names` that were fitted; one that is named twice counts once.
    key
        Stem under which the fit is stored.
    key_added
        Stem of the columns of `obs` below. What is there already must be an earlier result of this tool.
    copy
        Return a copy instead of writing into `adata`.

    Returns
    -------
    None, or the copy if `copy`. These fields are written, for `key_added="rank_cells_lfm"`:

    `.obs['rank_cells_lfm']` : (n,)
        Score, on the scale of the data.
    `.obs['rank_cells_lfm_sd']` : (n,)
        Its posterior standard deviation.
    `.obs['rank_cells_lfm_lfsr']` : (n,)
        Local false sign rate: posterior probability that the true score has the other sign.
    `.uns['lfm_written']` : dict
        Which tool wrote which field, by container and name.

    Raises
    ------
    KeyError
        There is no such fit or gene.
    ValueError
        A gene was left out of the fit, or something else would be overwritten.

    Examples
    --------
    >>> import scvi_lfm as lfm
    >>> adata = lfm.datasets.simulate(n_cells=200, n_genes=50, n_factors=3)
    >>> lfm.tl.fit(adata, n_factors=3, progress=False)
    >>> lfm.tl.rank_cells(adata, ["gene_0", "gene_1"])
    """
    check_anndata(adata)
    check_free(adata, "rank_cells", key_added, _places, copy=copy)
    stored = open_fit(adata, key)
    positions = np.unique(fitted_positions(adata, "genes", genes, stored.fitted))
    contrast = contrast_cells(stored.posterior, torch.from_numpy(positions))
    values = (contrast.score.numpy().astype(np.float32), contrast.sd.numpy().astype(np.float32), contrast.lfsr.numpy())
    return write_fields(adata, "rank_cells", dict(zip(_places(key_added), values, strict=True)), copy=copy)


def _places(key: str) -> list[tuple[str, str]]:
    return [("obs", f"{key}{part}") for part in ("", "_sd", "_lfsr")]


def fitted_positions(adata: AnnData, argument: str, genes: object, fitted: np.ndarray) -> np.ndarray:
    """Positions of named genes among the fitted ones."""
    positions = locate(argument, genes, adata.var_names, "var")
    left_out = positions[~fitted[positions]]
    if len(left_out):
        msg = f"`{argument}`: gene {adata.var_names[left_out[0]]!r} was left out of the fit by mask_var."
        raise ValueError(msg)
    return (np.cumsum(fitted) - 1)[positions]
