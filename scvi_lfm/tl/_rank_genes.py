"""`tl.rank_genes`: which genes belong to these cells."""

from __future__ import annotations

import functools
import math
import operator
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from .._keys import PARAMS
from .._memory import naming_memory
from .._settings import logger
from .._validate import as_list, check_anndata, check_choice, near_matches, resolve_groups, resolve_mask
from ..posterior.contrast import Contrast, Sums, contrast_genes, expected_eta
from ._open import open_fit
from ._overwriting import check_free, write_fields
from ._tool import tool
from ._values import LOG_BASE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from torch import Tensor

    from ..posterior import StoredFit

SELECTED = "selected"
SCORES, IN_SDS = RANKBY = ("scores", "scores/sd")
# nothing here is one, but scanpy's readers of a ranking die without the columns
ASKED_BY_SCANPY = ("pvals", "pvals_adj")


@tool
def rank_genes(
    adata: AnnData,
    groupby: str | None = None,
    *,
    groups: Sequence[str] | None = None,
    mask_obs: np.ndarray | str | None = None,
    reference: str | None = "rest",
    rankby: str = "scores",
    key: str = "lfm",
    key_added: str = "rank_genes_lfm",
    copy: bool = False,
) -> AnnData | None:
    r"""Rank genes by how well they align with chosen cells.

    For cells :math:`\mathcal C` against cells :math:`\mathcal R` the score of a gene is the difference of its expected
    eta,

    .. math::

        \mathrm{score}_j = (1, B_j) \cdot D, \qquad
        D = \mathrm{mean}_\mathcal{C} (a, A) - \mathrm{mean}_\mathcal{R} (a, A)

    whose order is exactly that of the inner products of B_j with the A part of D. Nothing is read but the fit.
    What covariates of the fit explain is no part of the score: cells are compared at the average of the covariates.

    Parameters
    ----------
    adata
        Annotated data with a fit (:func:`scvi_lfm.tl.fit`).
    groupby
        Column of `obs` whose groups are ranked, each against `reference`.
    groups
        Groups to rank; None ranks all.
    mask_obs
        Instead of `groupby`: the cells to rank genes for, as a boolean array (n,) or the name of a boolean column
        of `obs`. The group is then called `"selected"`.
    reference
        `"rest"` (all other cells), the name of a group, or None: the average cell of the fit.
    rankby
        What orders the genes: `"scores"`, how far the groups differ, or `"scores/sd"`, how surely they do, whose order
        is closer to that of a test. Either order begins with the highest; what is stored under `scores` is the same.
    key
        Stem under which the fit is stored.
    key_added
        Key in `uns` of the result. What is there already must be an earlier result of this tool.
    copy
        Return a copy instead of writing into `adata`.

    Returns
    -------
    None, or the copy if `copy`. For each group a field of record arrays, genes in decreasing order of what
    `rankby` says:

    `.uns['rank_genes_lfm']['names']` : (m,)
        Genes.
    `.uns['rank_genes_lfm']['scores']` : (m,)
        Difference of expected eta, on the scale of the data.
    `.uns['rank_genes_lfm']['sd']` : (m,)
        Posterior standard deviation of the score.
    `.uns['rank_genes_lfm']['lfsr']` : (m,)
        Local false sign rate: posterior probability that the true score has the other sign. It speaks about these
        cells, not about donors, and falls as cells are added.
    `.uns['rank_genes_lfm']['logfoldchanges']` : (m,)
        For counts the score over log 2, a difference of log2 rates. For log1p values an approximate log2 fold change:
        log2 of the ratio of `expm1` of the mean expected eta, clipped at 0, in the base that :func:`scanpy.pp.log1p`
        noted in `uns["log1p"]` before the fit (e if none). NaN if the fit read no log1p values but, as it could tell,
        negative, whole, scaled or unlogged ones, or ratings.
    `.uns['rank_genes_lfm']['pvals']`, `.uns['rank_genes_lfm']['pvals_adj']` : (m,)
        NaN throughout, for nothing here is one: scanpy's readers ask for the columns. A `pval_cutoff` keeps no gene.
    `.uns['rank_genes_lfm']['params']` : dict
        `groupby` (`"mask_obs"` with a mask), `reference`, `rankby`, `method`, `use_raw`, `layer` (absent for `X`),
        `key`.
    `.uns['lfm_written']` : dict
        Which tool wrote which field, by container and name.

    The layout is that of :func:`scanpy.tl.rank_genes_groups`: draw it with `sc.pl.rank_genes_groups` and its kin
    (`_dotplot`, `_heatmap`, ...) and `key="rank_genes_lfm"`, read it with :func:`scvi_lfm.get.rank_genes_df`. After
    `mask_obs`, plots that show the cells of groups want a column of `obs` as `groupby=`.

    Raises
    ------
    KeyError
        There is no such fit, column or group.
    TypeError, ValueError
        The groups cannot be compared, or `rankby` is none of the two. `adata` is then as it was.

    Examples
    --------
    >>> import scvi_lfm as lfm
    >>> adata = lfm.datasets.simulate(n_cells=200, n_genes=50, n_factors=3)
    >>> lfm.tl.fit(adata, n_factors=3, progress=False)
    >>> lfm.tl.rank_genes(adata, mask_obs=adata.obsm["X_lfm"][:, 0] > 0)
    >>> lfm.get.rank_genes_df(adata)["names"].shape
    (50,)
    """
    check_anndata(adata)
    check_free(adata, "rank_genes", key_added, _places, copy=copy)
    check_choice("rankby", rankby, RANKBY)
    stored = open_fit(adata, key)
    if (groupby is None) == (mask_obs is None):
        msg = "Pass either `groupby` (a column of obs) or `mask_obs` (the cells), and not both."
        raise ValueError(msg)
    if groupby is None:
        labels = pd.Series(np.where(resolve_mask("mask_obs", mask_obs, adata.obs), SELECTED, "rest"))
        if groups is not None or reference not in {"rest", None}:
            msg = "With `mask_obs` there are no other groups: leave `groups` out, and pass reference='rest' or None."
            raise ValueError(msg)
        chosen = [SELECTED]
    else:
        column = resolve_groups(adata, groupby)
        labels = column.astype(str)
        reference = None if reference is None else str(reference)
        present = [str(group) for group in column.cat.remove_unused_categories().cat.categories]
        chosen = _chosen_groups(present, groupby, groups, reference)
    _check_sizes(labels, chosen, reference)
    names = adata.var_names.to_numpy()[stored.fitted]
    base = base_of_logs(stored)
    results = _rank(stored, labels.to_numpy(), chosen, reference, base)
    params: dict[str, Any] = {"reference": "average" if reference is None else reference, "method": "lfm"}
    # scanpy's plot wants a groupby
    params |= {"rankby": rankby, "use_raw": False, "key": key, "groupby": "mask_obs" if groupby is None else groupby}
    if stored.arguments.layer is not None:
        params["layer"] = stored.arguments.layer
    record = {PARAMS: params, **_records(names, results, rankby)}
    return write_fields(adata, "rank_genes", dict.fromkeys(_places(key_added), record), copy=copy)


def _places(key: str) -> list[tuple[str, str]]:
    return [("uns", key)]


def _chosen_groups(
    present: Sequence[str], groupby: str, groups: Sequence[str] | None, reference: str | None
) -> list[str]:
    # a group of that name is a group like any other
    against_group = reference not in {"rest", None}
    if groups is None:
        chosen = [group for group in present if not (against_group and group == reference)]
    else:
        chosen = list(dict.fromkeys(str(group) for group in as_list("groups", groups)))
        if not chosen:
            msg = f"`groups` names none of the groups of obs[{groupby!r}]. {near_matches('', present)}"
            raise ValueError(msg)
    for group in [*chosen, str(reference)] if against_group else chosen:
        if group not in present:
            msg = f"obs[{groupby!r}] has no group {group!r} with cells in it. {near_matches(group, present)}"
            raise KeyError(msg)
    if "" in chosen:
        msg = (
            f"obs[{groupby!r}] has cells whose label is empty, and their ranking would have no name. Give them one, "
            f"such as by adata.obs[{groupby!r}].astype(str).replace('', 'none'), or leave that group out of `groups`."
        )
        raise ValueError(msg)
    if not chosen:
        msg = f"No group of obs[{groupby!r}] is left to rank against {reference!r}."
        raise ValueError(msg)
    if against_group and reference in chosen:
        msg = f"`reference` {reference!r} is one of the groups to rank; leave it out of `groups`."
        raise ValueError(msg)
    return chosen


def _check_sizes(labels: pd.Series, chosen: list[str], reference: str | None) -> None:
    sizes = labels.value_counts()
    for group in chosen:
        size = sizes.get(group, 0)
        if size == 0:
            msg = f"Group {group!r} holds no cell: there is nothing to compare."
            raise ValueError(msg)
        if reference == "rest" and size == len(labels):
            msg = f"Group {group!r} holds every cell: there is no rest to compare with. Pass reference=None."
            raise ValueError(msg)


def base_of_logs(stored: StoredFit) -> float | None:
    """Base of the log1p values that the fit read; None, and a note, if it read others."""
    if stored.posterior.likelihood.has_rate:
        return None
    # a fit stored without a record is taken at its user's word
    base = stored.values.get(LOG_BASE) if stored.values else math.e
    if base is None:
        logger.warning("the fit read values that are not log1p: their logfoldchanges are NaN")
    return None if base is None else float(base)


@naming_memory("rank genes")
def _rank(
    stored: StoredFit, labels: np.ndarray, chosen: Sequence[str], reference: str | None, base: float | None
) -> dict[str, tuple[Contrast, np.ndarray]]:
    """Contrast of each chosen group, and its log2 fold changes; the posterior of each cell is summed once."""
    q, number = stored.posterior, pd.Index(chosen).get_indexer(labels)  # -1: none of them

    def sums_of(cells: np.ndarray) -> list[Sums]:
        return [Sums.of(q, torch.from_numpy(cells))] if cells.any() else []

    groups = [sums_of(number == k)[0] for k in range(len(chosen))]
    others = [] if reference is None else sums_of(number < 0 if reference == "rest" else labels == reference)
    results = {}
    for k, group in enumerate(chosen):
        against = others + (groups[:k] + groups[k + 1 :] if reference == "rest" else [])
        rest = functools.reduce(operator.add, against) if against else None
        contrast = contrast_genes(q, groups[k], rest)
        results[group] = contrast, _log2_fold_changes(stored, contrast, groups[k], rest, base)
    return results


def _log2_fold_changes(
    stored: StoredFit, contrast: Contrast, cells: Sums, others: Sums | None, base: float | None
) -> np.ndarray:
    if stored.posterior.likelihood.has_rate:
        return (contrast.score / math.log(2)).numpy()
    if base is None:
        return np.full(len(contrast.score), np.nan)
    etas = (expected_eta(stored.posterior, sums) + stored.level for sums in (cells, others))
    here, there = (_log2_unlogged(eta, base) for eta in etas)
    return (here - there).numpy()


def _log2_unlogged(eta: Tensor, base: float) -> Tensor:
    return ((eta.clamp_min(0) * math.log(base)).expm1() + 1e-9).log() / math.log(2)


@naming_memory("rank genes")
def _records(
    names: np.ndarray, results: Mapping[str, tuple[Contrast, np.ndarray]], rankby: str
) -> dict[str, np.ndarray]:
    columns: dict[str, dict[str, np.ndarray]] = {}
    for group, (contrast, fold) in results.items():
        order = np.argsort(-(contrast.score if rankby == SCORES else contrast.in_sds).numpy(), kind="stable")
        fields = {
            "names": names.astype(object),
            "scores": contrast.score.numpy().astype(np.float32),
            "logfoldchanges": fold.astype(np.float32),
            "sd": contrast.sd.numpy().astype(np.float32),
            "lfsr": contrast.lfsr.numpy(),
            **dict.fromkeys(ASKED_BY_SCANPY, np.full(len(names), np.nan, dtype=np.float32)),
        }
        for name, values in fields.items():
            columns.setdefault(name, {})[group] = values[order]
    return {name: pd.DataFrame(by_group).to_records(index=False) for name, by_group in columns.items()}
