"""`tl.anomalies`: which values should not be there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from .._keys import PARAMS
from .._memory import naming_memory
from .._validate import check_anndata, check_choice, check_count, check_fraction, check_not_empty
from ..posterior.anomalies.listing import Question, list_entries
from ..posterior.anomalies.scan import anomaly_scan
from ..posterior.dense_blocks import DenseBlocks
from ._open import open_fit, open_values
from ._overwriting import check_free, write_fields
from ._tool import tool

if TYPE_CHECKING:
    import torch
    from anndata import AnnData

    from ..data import CellMatrix
    from ..posterior import StoredFit
    from ..posterior.anomalies.listing import Listing


DIRECTIONS = ("both", "up", "down")
LISTED_BY = ("auto", "lfdr", "q", "either")
_LESS = "Look at fewer cells at a time, or pass a smaller max_entries"


@tool
def anomalies(
    adata: AnnData,
    *,
    layer: str | None = None,
    direction: str = "both",
    by: str = "auto",
    fdr: float = 0.1,
    max_entries: int = 100_000,
    device: str = "auto",
    key: str = "lfm",
    key_added: str = "lfm_anomaly",
    copy: bool = False,
) -> AnnData | None:
    r"""Find cell-gene pairs whose values the model did not expect.

    Two questions are asked of every entry that was data of the fit, both under its leave-one-out predictive, in which
    neither the cell nor the gene has seen the entry:

    - Is this value improbable here? Its tail probability `p`, and the Benjamini-Hochberg `q` over all entries.
    - Does it look as if it came from other cells?
      :math:`\log p(y_{ij} \mid \text{other cells}) - \log p(y_{ij} \mid \text{own})`, the `log_ratio`, and the local
      false discovery rate `lfdr` that follows from it.

    In raw counts a large value may also be a gross error of neither kind, a burst of molecules that no cell accounts
    for; how often and how large these are is learned from the data. Counts that are odd in either way are taken out of
    what the cell and the gene expect before anything is judged, so that many of them do not hide each other. They are
    told by the cells and genes of `adata`: a part of it may be judged a little differently than all of it.

    The second cannot reward a gene for being rare, and is the one to read first: log-normalised values are far from
    Normal, so many singletons of rare genes are improbable under the first without meaning anything. Doublets lie
    inside the span of the model; neither score finds them.

    Parameters
    ----------
    adata
        Annotated data with a fit (:func:`scvi_lfm.tl.fit`).
    layer
        Layer to read; None means the one that the fit read.
    direction
        `"up"`: values above expectation (what should not be in this cell). `"down"`: below (what is missing from it).
        `"both"`: either.
    by
        What an entry is listed by. `"lfdr"`: it looks as if it came from other cells. `"q"`: it is improbable here.
        `"either"`: one or the other. `"auto"`: either of counts, and by lfdr alone of other values, in which thousands
        of single molecules of rare genes are improbable.
    fdr
        Level of `lfdr` or `q` at which an entry is listed.
    max_entries
        Number of entries to list at the most: those that come first.
    device
        As in :func:`scvi_lfm.tl.fit`.
    key
        Stem under which the fit is stored.
    key_added
        Key in `obs`, `var` and `uns` of the result. What is there already must be an earlier result of this tool.
    copy
        Return a copy instead of writing into `adata`.

    Returns
    -------
    None, or the copy if `copy`. These fields are written, for `key_added="lfm_anomaly"`:

    `.obs['lfm_anomaly']` : (n,)
        Evidence, in nats, that some of the cell's entries came from other cells: the sum over its entries of
        log(1 - share + share exp(log_ratio)), with the share of such entries fitted by EM.
    `.var['lfm_anomaly']` : (m,)
        The same for the gene; NaN for genes that were left out of the fit.
    `.uns['lfm_anomaly']['entries']` : data frame
        One row for each listed entry: `cell`, `gene`, `y`, `expected` (leave-one-out), `p`, `q`, `log_ratio`, `lfdr`,
        `direction` (`"up"` or `"down"`). The first are the ones to read: they come by decreasing log ratio, or with
        `by="q"` by increasing `p`.
    `.uns['lfm_anomaly']['depth_correlation']` : float
        Spearman correlation of the cells' score with the number of genes detected. Far from zero, the score follows
        depth and should not be used to choose cells.
    `.uns['lfm_anomaly']['params']` : dict
        `key`, `layer` (absent for `X`), `direction`, `by` (what `"auto"` took), `fdr`, `max_entries`, and the number of
        entries that pass each question, listed or not, `n_by_tail` (`q`) and `n_by_ratio` (`lfdr`).
    `.uns['lfm_written']` : dict
        Which tool wrote which field, by container and name.

    Raises
    ------
    KeyError
        There is no such fit or layer.
    TypeError, ValueError
        An argument or the data cannot be used, the values are of another kind than those that the fit read, or the fit
        is one by `likelihood="student_t"`, which has no leave-one-out predictive in closed form. `adata` is then as it
        was.

    Notes
    -----
    The values are read twice, besides the reading that checks them: once to learn how often entries come from other
    cells, and which counts are odd, once to score. On a cluster of dask, tail probabilities are counted in a third
    reading, unless entries are listed by lfdr alone, so that no more than the entries of the list travel.

    Examples
    --------
    >>> import scvi_lfm as lfm
    >>> adata = lfm.datasets.simulate(n_cells=200, n_genes=50, n_factors=3)
    >>> adata.X[7, 3] += 30
    >>> lfm.tl.fit(adata, n_factors=3, progress=False)
    >>> lfm.tl.anomalies(adata)
    >>> lfm.get.anomalies_df(adata)[["cell", "gene", "direction"]].iloc[0].tolist()
    ['cell_7', 'gene_3', 'up']
    """
    check_anndata(adata)
    check_choice("direction", direction, DIRECTIONS)
    check_choice("by", by, LISTED_BY)
    fdr = check_fraction("fdr", fdr)
    max_entries = check_count("max_entries", max_entries)
    check_free(adata, "anomalies", key_added, _places, copy=copy)
    check_not_empty(adata)
    stored = open_fit(adata, key, device, closed_form_for="anomalies")
    values, where = open_values(adata, stored, layer), stored.device
    matrix, layer = values.matrix, values.layer
    found, by = _find(matrix, stored, direction, by, fdr, max_entries, where)

    gene_names = adata.var_names.to_numpy()[stored.fitted]
    entries = _table(found, by, max_entries, matrix.level, adata.obs_names.to_numpy(), gene_names)
    cell_score, depth = found.cell_score.double().cpu().numpy(), found.depth.cpu().numpy()
    gene_score = np.full(adata.n_vars, np.nan, dtype=np.float32)
    gene_score[stored.fitted] = found.gene_score.cpu().numpy()
    params = {"key": key, "direction": direction, "by": by, "fdr": fdr, "max_entries": max_entries}
    params |= {"n_by_tail": found.n_by_tail, "n_by_ratio": found.n_by_ratio}
    if layer is not None:
        params["layer"] = layer
    record = {PARAMS: params, "entries": entries, "depth_correlation": _rank_correlation(cell_score, depth)}
    results = (cell_score.astype(np.float32), gene_score, record)
    return write_fields(adata, "anomalies", dict(zip(_places(key_added), results, strict=True)), copy=copy)


def _places(key: str) -> list[tuple[str, str]]:
    return [(container, key) for container in ("obs", "var", "uns")]


@naming_memory("find anomalies", _LESS)
def _find(
    matrix: CellMatrix, stored: StoredFit, direction: str, by: str, fdr: float, max_entries: int, device: torch.device
) -> tuple[Listing, str]:
    """Listing of what is found, and the score that it was listed by."""
    blocks = DenseBlocks(matrix, device)
    scan, cleaned, share = anomaly_scan(stored.posterior, blocks, direction, fdr)
    by = scan.listed_by if by == "auto" else by
    question = Question(by, fdr, max_entries, share)
    # a value of zero, less the level
    return list_entries(scan, cleaned, blocks, question, total=matrix.n_observed, zero=-matrix.level), by


def _order(rows: dict[str, np.ndarray], by: str) -> np.ndarray:
    """Positions of entries, the ones to read first; ties stay in the order of cells and genes."""
    telling = -rows["log_ratio"]
    return np.lexsort((telling, rows["p"]) if by == "q" else (rows["p"], telling))


def _table(found: Listing, by: str, most: int, level: float, cells: np.ndarray, genes: np.ndarray) -> pd.DataFrame:
    rows = {name: values.cpu().numpy() for name, values in found.entries.items()}
    if level:
        rows |= {name: rows[name] + np.float64(level) for name in ("y", "expected")}
    table = pd.DataFrame(rows).iloc[_order(rows, by)[:most]].reset_index(drop=True)
    table["cell"], table["gene"] = cells[table["cell"]], genes[table["gene"]]
    table["direction"] = np.where(table["y"] > table["expected"], "up", "down").astype(object)
    return table


def _rank_correlation(score: np.ndarray, depth: np.ndarray) -> float:
    if np.ptp(score) == 0 or np.ptp(depth) == 0:
        return float("nan")
    return float(np.corrcoef(pd.Series(score).rank(), pd.Series(depth).rank())[0, 1])
