"""Tables of what was searched for: ranked genes, and anomalies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from .._calls import named_arguments
from .._validate import check_choice, check_fraction, locate, near_matches
from ._stored import listed, stored_fields

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

_RANK_COLUMNS = ("names", "scores", "logfoldchanges", "sd", "lfsr")
_ENTRY_COLUMNS = ("cell", "gene", "y", "expected", "p", "q", "log_ratio", "lfdr", "direction")


@named_arguments
def rank_genes_df(
    adata: AnnData,
    group: str | Sequence[str] | None = None,
    *,
    key: str = "rank_genes_lfm",
    max_lfsr: float | None = None,
    min_score: float | None = None,
) -> pd.DataFrame:
    """Table of the genes that :func:`scvi_lfm.tl.rank_genes` ranked.

    Parameters
    ----------
    adata
        Annotated data that holds the ranking.
    group
        Group or groups of cells; None takes all. Cells that were chosen by a mask are the group `"selected"`.
    key
        The `key_added` of :func:`scvi_lfm.tl.rank_genes`.
    max_lfsr
        Keep only genes whose local false sign rate is at most this.
    min_score
        Keep only genes whose score is at least this.

    Returns
    -------
    One row for each gene of each group, in the order of its `rankby` (the highest score first unless that says
    otherwise), with the columns

    - `group`: the group of cells (categorical, in the order asked for); left out if one group was asked for.
    - `names`: the gene.
    - `scores`, `sd`: difference in expected value between the group and its reference, and its posterior standard
      deviation.
    - `logfoldchanges`: approximate log2 fold change.
    - `lfsr`: local false sign rate, the posterior probability that the score has the other sign. It speaks about
      these cells, not about the donors they came from.

    Genes that are no longer in `adata` are left out.

    Raises
    ------
    KeyError, TypeError, ValueError
        There is no such ranking or group, or a bound is no number or out of range.

    Examples
    --------
    >>> import scvi_lfm as lfm
    >>> adata = lfm.datasets.simulate(n_cells=200, n_genes=50, n_factors=3)
    >>> lfm.tl.fit(adata, n_factors=3, progress=False)
    >>> lfm.tl.rank_genes(adata, mask_obs=adata.obsm["X_lfm"][:, 0] > 0)
    >>> lfm.get.rank_genes_df(adata, "selected", max_lfsr=0.01, min_score=0).columns.tolist()
    ['names', 'scores', 'logfoldchanges', 'sd', 'lfsr']
    """
    if max_lfsr is not None:
        check_fraction("max_lfsr", max_lfsr)
    if min_score is not None and not isinstance(min_score, int | float | np.number):
        msg = f"`min_score` must be a number, found {min_score!r} of type {type(min_score).__name__}."
        raise TypeError(msg)
    stored = stored_fields(adata, key, "rank_genes", *_RANK_COLUMNS)
    available = stored["names"].dtype.names
    groups = list(available) if group is None else [str(name) for name in listed("group", group)]
    for name in groups:
        if name not in available:
            msg = f"uns[{key!r}] has no group {name!r}. {near_matches(name, available)}"
            raise KeyError(msg)
    ranked = [{"group": name} | {column: stored[column][name] for column in _RANK_COLUMNS} for name in groups]
    table = pd.concat(map(pd.DataFrame, ranked), ignore_index=True)
    table["group"] = pd.Categorical(table["group"], categories=groups)
    table["names"] = table["names"].astype(str)
    enough = table["scores"].ge(-np.inf if min_score is None else min_score)
    sure = table["lfsr"].le(1 if max_lfsr is None else max_lfsr)
    table = table[enough & sure & table["names"].isin(adata.var_names)].reset_index(drop=True)
    return table if group is None or len(groups) > 1 else table.drop(columns="group")


@named_arguments
def anomalies_df(
    adata: AnnData,
    *,
    key: str = "lfm_anomaly",
    cell: str | Sequence[str] | None = None,
    gene: str | Sequence[str] | None = None,
    direction: str | None = None,
) -> pd.DataFrame:
    """Table of the anomalous entries that :func:`scvi_lfm.tl.anomalies` found.

    Parameters
    ----------
    adata
        Annotated data that holds the anomalies.
    key
        The `key_added` of :func:`scvi_lfm.tl.anomalies`.
    cell
        Keep only the entries of this cell, or of these.
    gene
        Keep only the entries of this gene, or of these.
    direction
        `"up"`: observed above expected; `"down"`: below. None keeps both.

    Returns
    -------
    One row for each entry, largest log ratio first, with the columns

    - `cell`, `gene`: names of the entry's cell and gene.
    - `y`, `expected`: the value observed, and the one expected from all other values.
    - `p`, `q`: tail probability of the value in its own cell, and the same adjusted for the number of entries.
    - `log_ratio`: log likelihood ratio of "this value comes from another cell" against "it comes from this one".
    - `lfdr`: local false discovery rate, the posterior probability that the value does belong to its cell.
    - `direction`: `"up"` or `"down"`.

    `.attrs["depth_correlation"]` holds the Spearman correlation of the cells' scores with their depth: far from zero,
    the table finds shallow or deep cells. Entries whose cell or gene is no longer in `adata` are left out.

    Raises
    ------
    KeyError, ValueError
        There is no such table, cell, gene or direction.

    Examples
    --------
    >>> import scvi_lfm as lfm
    >>> adata = lfm.datasets.simulate(n_cells=200, n_genes=50, n_factors=3)
    >>> adata.X[7, 3] += 30
    >>> lfm.tl.fit(adata, n_factors=3, progress=False)
    >>> lfm.tl.anomalies(adata)
    >>> lfm.get.anomalies_df(adata, cell="cell_7")["gene"].tolist()
    ['gene_3']
    """
    if direction is not None:
        check_choice("direction", direction, ("up", "down"))
    stored = stored_fields(adata, key, "anomalies", "entries", "depth_correlation")
    table = stored["entries"].loc[:, list(_ENTRY_COLUMNS)]
    table = table.astype(dict.fromkeys(("cell", "gene", "direction"), str))
    keep = np.ones(len(table), dtype=bool) if direction is None else (table["direction"] == direction).to_numpy()
    for name, wanted, index, axis in (("cell", cell, adata.obs_names, "obs"), ("gene", gene, adata.var_names, "var")):
        names = index if wanted is None else index[locate(name, wanted, index, axis)]
        keep = keep & table[name].isin(names).to_numpy()
    table = table[keep].reset_index(drop=True)
    table.attrs["depth_correlation"] = float(stored["depth_correlation"])
    return table
