"""Results as tidy tables, read from what the tools stored in an AnnData."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ._keys import fit_keys
from ._validate import check_anndata, check_choice, check_count, check_fraction, check_key, locate, near_matches

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

__all__ = ["anomalies_df", "elbo_df", "factors_df", "rank_genes_df", "variance_df"]

_RANK_COLUMNS = ("names", "scores", "logfoldchanges", "sd", "lfsr")
_ENTRY_COLUMNS = ("cell", "gene", "y", "expected", "p", "q", "log_ratio", "lfdr", "direction")
_DEFAULT_KEYS = {"fit": "lfm", "rank_genes": "rank_genes_lfm", "anomalies": "lfm_anomaly"}


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
    One row for each gene of each group, best score first, with the columns

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
    """
    if max_lfsr is not None:
        check_fraction("max_lfsr", max_lfsr)
    if min_score is not None and not isinstance(min_score, int | float | np.number):
        msg = f"`min_score` must be a number, found {min_score!r} of type {type(min_score).__name__}."
        raise TypeError(msg)
    stored = _stored(adata, key, "rank_genes", *_RANK_COLUMNS)
    available = stored["names"].dtype.names
    groups = list(available) if group is None else _listed("group", group)
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
    """
    if direction is not None:
        check_choice("direction", direction, ("up", "down"))
    stored = _stored(adata, key, "anomalies", "entries", "depth_correlation")
    table = stored["entries"].loc[:, list(_ENTRY_COLUMNS)]
    table = table.astype(dict.fromkeys(("cell", "gene", "direction"), str))
    keep = np.ones(len(table), dtype=bool) if direction is None else (table["direction"] == direction).to_numpy()
    for name, wanted, index, axis in (("cell", cell, adata.obs_names, "obs"), ("gene", gene, adata.var_names, "var")):
        names = index if wanted is None else index[locate(name, wanted, index, axis)]
        keep &= table[name].isin(names).to_numpy()
    table = table[keep].reset_index(drop=True)
    table.attrs["depth_correlation"] = float(stored["depth_correlation"])
    return table


def factors_df(
    adata: AnnData, *, factors: int | Sequence[int] | None = None, key: str = "lfm", n_genes: int | None = None
) -> pd.DataFrame:
    """Table of the gene embedding: how each gene loads on each factor.

    Parameters
    ----------
    adata
        Annotated data that holds a fit.
    factors
        Factor or factors, counted from 0; None takes all that are on.
    key
        The `key_added` of :func:`scvi_lfm.tl.fit`.
    n_genes
        Number of genes to keep for each factor; None keeps all.

    Returns
    -------
    One row for each gene of each factor, largest absolute loading first, with the columns

    - `factor`: index of the factor.
    - `gene`: name of the gene.
    - `loading`, `sd`: posterior mean and standard deviation of the loading. The sign of a factor is arbitrary.

    Genes that were not fitted are left out.

    Raises
    ------
    KeyError
        There is no such fit.
    TypeError, ValueError
        There is no such factor, or `n_genes` is no number of genes.
    """
    _stored(adata, key, "fit")
    keys = fit_keys(key)
    for name in (keys.gene_factors, keys.gene_factors_sd):
        if name not in adata.varm:
            msg = f"varm has no {name!r}. {near_matches(name, adata.varm)} {_advice('fit', key)}"
            raise KeyError(msg)
    loadings, sds = np.asarray(adata.varm[keys.gene_factors]), np.asarray(adata.varm[keys.gene_factors_sd])
    on = np.flatnonzero((sds > 0).any(0)).tolist()
    chosen = on if factors is None else _check_factors(factors, loadings.shape[1])
    fitted = np.isfinite(loadings).all(1)
    genes, loadings, sds = adata.var_names[fitted].astype(str), loadings[fitted], sds[fitted]
    top = len(genes) if n_genes is None else check_count("n_genes", n_genes)
    orders = {k: np.argsort(-np.abs(loadings[:, k]), kind="stable")[:top] for k in chosen}
    rows = np.concatenate([*orders.values(), np.empty(0, dtype=np.intp)])
    factor = np.repeat(np.asarray(chosen, dtype=np.int64), [len(order) for order in orders.values()])
    return pd.DataFrame(
        {"factor": factor, "gene": genes[rows], "loading": loadings[rows, factor], "sd": sds[rows, factor]}
    )


def variance_df(adata: AnnData, *, key: str = "lfm") -> pd.DataFrame:
    """Table of the variance that each factor explains.

    Parameters
    ----------
    adata
        Annotated data that holds a fit.
    key
        The `key_added` of :func:`scvi_lfm.tl.fit`.

    Returns
    -------
    One row for each factor, with the columns

    - `factor`: index of the factor.
    - `variance_ratio`: share of the variance of the values around their genes' means that it explains; 0 for a
      factor that is off.
    - `cumulative`: the same for this factor and all before it.

    Raises
    ------
    KeyError
        There is no such fit.
    """
    stored = _stored(adata, key, "fit", "variance_ratio")
    ratio = np.asarray(stored["variance_ratio"], dtype=np.float64)
    return pd.DataFrame({"factor": np.arange(len(ratio)), "variance_ratio": ratio, "cumulative": ratio.cumsum()})


def elbo_df(adata: AnnData, *, key: str = "lfm") -> pd.DataFrame:
    """Table of the evidence lower bound (ELBO) in the course of a fit.

    Parameters
    ----------
    adata
        Annotated data that holds a fit.
    key
        The `key_added` of :func:`scvi_lfm.tl.fit`.

    Returns
    -------
    One row for each evaluation, with the columns

    - `epoch`: passes over the cells that were done.
    - `value`: the ELBO, divided by the number of entries that are data.
    - `gain`: `value` minus that of the model without factors.
    - `share`: `gain` as a share of the last row's; missing where the factors gained nothing.
    - `held_out_log_density`, `held_out_rmse`: how well each entry held out was predicted, if any were.

    Raises
    ------
    KeyError
        There is no such fit.
    """
    stored = _stored(adata, key, "fit", "elbo")
    elbo, held_out = stored["elbo"], stored.get("held_out", {})
    value = np.asarray(elbo["value"], dtype=np.float64)
    gain = value - float(elbo["rank0"])
    last = gain[-1] if len(gain) and gain[-1] > 0 else np.nan
    table = pd.DataFrame({"epoch": np.asarray(elbo["epoch"]), "value": value, "gain": gain, "share": gain / last})
    names = [name for name in ("log_density", "rmse") if name in held_out]
    return table.assign(**{f"held_out_{name}": np.asarray(held_out[name], dtype=np.float64) for name in names})


def _stored(adata: AnnData, key: str, tool: str, *fields: str) -> Mapping[str, Any]:
    """The dictionary `uns[key]` that `tool` wrote."""
    check_anndata(adata)
    check_key("key", key)
    if key not in adata.uns:
        msg = f"uns has no {key!r}. {near_matches(key, adata.uns)} {_advice(tool, key)}"
        raise KeyError(msg)
    stored = adata.uns[key]
    for field in fields:
        if not isinstance(stored, Mapping) or field not in stored:
            msg = f"uns[{key!r}] was not written by lfm.tl.{tool}: it has no {field!r}. {_advice(tool, key)}"
            raise KeyError(msg)
    return stored


def _advice(tool: str, key: str) -> str:
    more = ", groupby" if tool == "rank_genes" else ""
    more += "" if key == _DEFAULT_KEYS[tool] else f", key_added={key!r}"
    return f"Run lfm.tl.{tool}(adata{more}) first."


def _check_factors(factors: int | Sequence[int], n_factors: int) -> list[int]:
    """`factors` as a list of indices below `n_factors`."""
    checked = [check_count("factors", factor, minimum=0) for factor in _listed("factors", factors)]
    for factor in checked:
        if factor >= n_factors:
            msg = f"`factors` asks for factor {factor}, but the fit has {n_factors}, counted from 0 to {n_factors - 1}."
            raise ValueError(msg)
    return checked


def _listed(name: str, value: object) -> list[Any]:
    """One thing or several as a list without repeats."""
    listed = list(dict.fromkeys(value)) if isinstance(value, Iterable) and not isinstance(value, str) else [value]
    if not listed:
        msg = f"`{name}` names nothing; pass at least one, or None."
        raise ValueError(msg)
    return listed
