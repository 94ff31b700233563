"""The values that a fit read, and those that a tool reads afterwards: they must be of one kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import anndata as ad
import pandas as pd

from .._calls import warn_user
from .._validate import place_of
from ..data import read_matrix
from ..data._kind import ValueKind, other_kind, other_scale
from ..model.likelihoods import COUNTS
from ..posterior import CountPosterior
from ..posterior.fields import entry
from ..posterior.posterior import extend
from ._common import layer_of_fit
from ._fit_arguments import check_count_values
from ._size_factors import expected_rates

if TYPE_CHECKING:
    import numpy as np

    from ..data import CellMatrix
    from ..posterior import NormalPosterior, StoredFit

# in the record: what a fit to counts expects of its own cells; the base of logs, absent where values are none
EXPECTED_TOTAL, LOG_BASE = "expected_total", "log_base"


@dataclass(frozen=True)
class _Fitted:
    """What values must be like to be of the fit's kind, and on its scale."""

    kind: ValueKind
    expected: np.ndarray | None  # (genes read,), the mean over the cells read; None: no scale is compared
    counts: bool
    ratings: bool

    def other_kind(self, found: ValueKind) -> tuple[str, str] | None:
        return other_kind(found, self.kind, ratings=self.ratings)

    def other_scale(self, found: ValueKind) -> str | None:
        if self.expected is None:
            return None
        return other_scale(found, self.kind, self.expected, counts=self.counts, ratings=self.ratings)


def record_of_values(kind: ValueKind, log_base: float | None, q: NormalPosterior | CountPosterior) -> dict[str, float]:
    """What a fit stores of the values that it read."""
    record = kind.record()
    if isinstance(q, CountPosterior):
        record[EXPECTED_TOTAL] = float(expected_values(q).sum())
    return record if log_base is None else record | {LOG_BASE: log_base}


def expected_values(q: NormalPosterior | CountPosterior) -> np.ndarray:
    """Mean over the cells of `q`, or the average cell where it has none, of what is expected of each gene, (m,)."""
    if isinstance(q, CountPosterior):
        rates = expected_rates(q) * q.noise.log_size.exp().mean()
        return COUNTS[q.noise.likelihood].mean(rates, q.noise.dispersion).cpu().numpy()
    expected = q.mu + q.gene_mean[:, 0]
    if len(q.cell_mean):  # the average cell has zeros
        expected = expected + extend(q.gene_mean) @ q.cell_mean.mean(0)
    return expected.cpu().numpy()


def read_as_fitted(
    adata: ad.AnnData,
    stored: StoredFit,
    layer: str | None,
    *,
    genes: np.ndarray,
    expected: np.ndarray | None,
) -> tuple[CellMatrix, str | None]:
    """Read the values of some genes, of the kind that the fit read, and say from which layer.

    Parameters
    ----------
    adata
        Annotated data, fitted or new.
    stored
        The fit.
    layer
        Layer to read; None means the one that the fit read.
    genes
        Boolean mask of the genes to read, (m,).
    expected
        What the fit expects of each of them, of :func:`expected_values`; None where no scale is to be compared.

    Raises
    ------
    KeyError
        There is no such layer.
    TypeError, ValueError
        The values cannot be used, or are of another kind than those of the fit.
    """
    layer = layer_of_fit(adata, stored, layer)
    likelihood, only = (
        str(entry(stored.params, "likelihood", stored.keys.uns)),
        stored.params.get("observed") == "stored",
    )
    matrix = read_matrix(adata, layer, genes=genes, stored_only=only)
    if stored.values and matrix.kind is not None:
        kind, counts = ValueKind.of_record(stored.values), likelihood in COUNTS
        expected = None if expected is None else expected + stored.level
        if counts and expected is not None:
            # the prior, which stands for the cells, may expect more than they hold
            expected = expected * (kind.mean_total / float(stored.values[EXPECTED_TOTAL]))
        fitted = _Fitted(kind, expected, counts, ratings=only and not counts)
        _compare(adata, layer, genes, matrix.kind, fitted, stored.params.get("layer"))
    if likelihood in COUNTS:
        check_count_values(matrix, layer, likelihood, adata.obs_names, adata.var_names[genes])
    return matrix, layer


def _compare(
    adata: ad.AnnData, layer: str | None, genes: np.ndarray, found: ValueKind, fitted: _Fitted, of_fit: str | None
) -> None:
    """Raise if the values are of another kind, and warn if they are on another scale, with what to read instead."""
    where, other = place_of(layer), fitted.other_kind(found)
    if other is not None:
        msg = f"{where} holds {other[0]} ({found.span}), and the fit read {other[1]} ({fitted.kind.span}). " + (
            _advice(adata, layer, genes, fitted, of_fit)
            or "Pass values of the kind that was fitted, or run lfm.tl.fit again."
        )
        raise ValueError(msg)
    scale = fitted.other_scale(found)
    if scale is not None:
        msg = f"The values of {where} are not on the scale that the fit read: {scale}. " + (
            _advice(adata, layer, genes, fitted, of_fit) or "Are they normalised as those were?"
        )
        warn_user(msg)


def _advice(adata: ad.AnnData, layer: str | None, genes: np.ndarray, fitted: _Fitted, of_fit: str | None) -> str | None:
    """The call that reads values which match the fit's, if `adata` has any."""
    place = "adata.X" if of_fit is None else f"adata.layers[{of_fit!r}]"
    if layer != of_fit and _suits(adata, of_fit, genes, fitted):
        return f"{place_of(of_fit)} matches: leave `layer` out."
    for name in adata.layers:
        if name not in {layer, of_fit} and _suits(adata, name, genes, fitted):
            return f"layers[{name!r}] matches: pass layer={name!r}."
    if layer is not None and _suits(adata, None, genes, fitted):
        return f"X matches: call {place} = adata.X.copy() first."
    names = adata.var_names[genes]
    if adata.raw is not None and adata.raw.var_names.is_unique and names.isin(adata.raw.var_names).all():
        values = adata.raw.X[:, adata.raw.var_names.get_indexer(names)]
        raw = ad.AnnData(values, obs=pd.DataFrame(index=adata.obs_names), var=pd.DataFrame(index=names))
        if _suits(raw, None, None, fitted):
            return f"raw matches: call {place} = adata.raw[:, adata.var_names].X first."
    return None


def _suits(adata: ad.AnnData, layer: str | None, genes: np.ndarray | None, fitted: _Fitted) -> bool:
    try:
        kind = read_matrix(adata, layer, genes=genes, stored_only=fitted.ratings).kind
    except (KeyError, TypeError, ValueError):
        return False
    return kind is not None and fitted.other_kind(kind) is None and fitted.other_scale(kind) is None
