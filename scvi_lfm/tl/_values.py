"""The values that a fit read, and those that a tool reads afterwards: they must be of one kind."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import anndata as ad
import pandas as pd

from .._calls import warn_user
from .._validate import near_matches, place_of
from ..data import read_matrix
from ..data.checks import check_counts
from ..data.kind import AS_READ, ENOUGH_VALUES, ValueKind, looks_logged, other_kind, other_scale

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from torch import Tensor

    from ..data import CellMatrix
    from ..data.normalised import Normalised
    from ..model.likelihoods import Likelihood
    from ..posterior import CountPosterior, NormalPosterior, StoredFit

# in the record: what a fit to counts expects of its own cells; the base of logs, absent where values are none
EXPECTED_TOTAL, LOG_BASE = "expected_total", "log_base"


@dataclass(frozen=True)
class _Fitted:
    """Kind and scale of a fit's values, with which others are compared."""

    kind: ValueKind
    as_read: ValueKind | None  # of what the fit log-normalised; None: nothing
    normalize: float | None
    expected: np.ndarray | None  # (genes read,), the mean over the cells read; None: no scale is compared
    counts: bool
    ratings: bool
    least: float  # the smallest value that the likelihood can have
    most: float  # and the largest

    @classmethod
    def of(cls, stored: StoredFit, of_genes: Tensor | None) -> _Fitted:
        likelihood, only = stored.posterior.likelihood, stored.arguments.observed == "stored"
        kind, counts = ValueKind.of_record(stored.values), likelihood.has_rate
        normalize = stored.arguments.normalize
        as_read = None if normalize is None else ValueKind.of_record(stored.values, AS_READ)
        expected = None if of_genes is None else of_genes.cpu().numpy() + stored.level
        if counts and only:
            expected = None  # what is expected of the entries that are not stored, none of them says
        elif counts and expected is not None:
            # the prior, which stands for the cells, may expect more than they hold
            expected = expected * (kind.mean_total / float(stored.values[EXPECTED_TOTAL]))
        least, most, ratings = -math.inf, likelihood.maximum or math.inf, only and not counts
        if likelihood.has_levels:  # few in a row may all be low
            least, most, ratings = kind.minimum, kind.maximum, True
        return cls(kind, as_read, normalize, expected, counts, ratings, least, most)

    def other_kind(self, matrix: CellMatrix) -> tuple[str, str] | None:
        found = _as_read(matrix)
        if self.as_read is not None:  # counts on any scale are normalised to the same
            totals = None if matrix.normalised is None else matrix.normalised.totals
            logged = found.n_present >= ENOUGH_VALUES and looks_logged(found, totals)
            logged = logged and not looks_logged(self.as_read)
            return ("values that look like logarithms", "counts, which it log-normalises itself") if logged else None
        if self.least > -math.inf and not self.least <= found.minimum <= found.maximum <= self.most:
            return "other levels", "levels"
        return other_kind(found, self.kind, ratings=self.ratings)

    def other_scale(self, matrix: CellMatrix) -> str | None:
        if self.expected is None:
            return None
        kind = cast("ValueKind", matrix.kind)
        return other_scale(kind, self.kind, self.expected, counts=self.counts, ratings=self.ratings)


def record_of_values(
    normalised: Normalised | None, kind: ValueKind, log_base: float | None, q: NormalPosterior | CountPosterior
) -> dict[str, float]:
    """Record of the values that a fit was made of, and of those that they were normalised from."""
    record = kind.record() | ({} if normalised is None else normalised.kind.record(AS_READ))
    if q.likelihood.has_rate:
        record[EXPECTED_TOTAL] = float(q.expected_values().sum())
    return record if log_base is None else record | {LOG_BASE: log_base}


def layer_of_fit(adata: ad.AnnData, stored: StoredFit, layer: str | None) -> str | None:
    """The layer to read: that of the fit unless another is asked for, which warns."""
    fitted = stored.arguments.layer
    if layer is None and fitted is not None and fitted not in adata.layers:
        near = near_matches(fitted, adata.layers)
        msg = (
            f"The fit read layers[{fitted!r}], which `adata` does not have. {near} Put values on the same scale there."
        )
        raise KeyError(msg)
    if layer is None or layer == fitted:
        return fitted
    if not isinstance(layer, str) or layer not in adata.layers:
        return layer  # the gate has the words for it
    msg = (
        f"layer={layer!r} is not what the fit read ({'X' if fitted is None else repr(fitted)}); "
        "results mean little unless both are on the same scale."
    )
    warn_user(msg)
    return layer


def read_as_fitted(
    adata: ad.AnnData,
    stored: StoredFit,
    layer: str | None,
    *,
    genes: np.ndarray,
    expected: Tensor | None,
    new: bool = False,
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
        What the posterior expects of each of them (`expected_values`); None where no scale is to be compared.
    new
        Whether the cells are none of the fit, so that their totals are not stored.

    Raises
    ------
    KeyError
        There is no such layer.
    TypeError, ValueError
        The values cannot be used, or are of another kind than those of the fit.
    """
    layer, of_fit = layer_of_fit(adata, stored, layer), stored.arguments.layer
    likelihood = stored.posterior.likelihood
    fitted = _Fitted.of(stored, expected) if stored.values else None
    normalize, stored_only = stored.arguments.normalize, stored.arguments.observed == "stored"
    totals = None if new or layer != of_fit else stored.totals

    def advice() -> str | None:
        return None if fitted is None else _advice(adata, layer, genes, fitted, of_fit)

    try:
        matrix = read_matrix(adata, layer, genes=genes, normalize=normalize, totals=totals, stored_only=stored_only)
        if not likelihood.linear:
            asked, otherwise = f"the fit's likelihood={likelihood.name!r}", "the `key` of a fit by likelihood='normal'"
            check_counts_of(adata, layer, genes, matrix, likelihood, asked=asked, otherwise=otherwise)
    except ValueError as error:
        found = advice()
        if found is None:
            raise
        msg = f"{error} {found}"
        raise ValueError(msg) from None
    if fitted is not None:
        _compare(matrix, place_of(layer), fitted, advice)
    return matrix, layer


def check_counts_of(
    adata: ad.AnnData,
    layer: str | None,
    genes: np.ndarray,
    matrix: CellMatrix,
    likelihood: Likelihood,
    *,
    asked: str,
    otherwise: str,
) -> None:
    """Raise unless the values of some genes, (m,) bool, are counts or levels that the likelihood can have.

    `asked` is the argument that is for such values, and `otherwise` what to pass for others.
    """
    names, most, levels = (adata.obs_names, adata.var_names[genes]), likelihood.maximum, likelihood.has_levels
    check_counts(matrix.source, place_of(layer), *names, asked=asked, otherwise=otherwise, maximum=most, levels=levels)


def _compare(matrix: CellMatrix, where: str, fitted: _Fitted, advise: Callable[[], str | None]) -> None:
    """Raise if the values are of another kind, and warn if they are on another scale, with what to read instead."""
    other, scale = fitted.other_kind(matrix), fitted.other_scale(matrix)
    if other is None and scale is None:
        return
    advice = advise()
    if other is not None:
        msg = (
            f"{where} holds {other[0]} ({_as_read(matrix).span}), and the fit read {other[1]} "
            f"({(fitted.as_read or fitted.kind).span}). "
            f"{advice or 'Pass values of the kind that was fitted, or run lfm.tl.fit again.'}"
        )
        raise ValueError(msg)
    msg = (
        f"The values of {where} are not on the scale that the fit read: {scale}. "
        f"{advice or 'Are they normalised as those were?'}"
    )
    warn_user(msg)


def _advice(adata: ad.AnnData, layer: str | None, genes: np.ndarray, fitted: _Fitted, of_fit: str | None) -> str | None:
    """The call that reads values which match the fit's, if `adata` has any."""
    place = "adata.X" if of_fit is None else f"adata.layers[{of_fit!r}]"
    if layer != of_fit and _suits(adata, of_fit, genes, fitted):
        return f"{place_of(of_fit)} matches: leave `layer` out."
    for name in adata.layers:
        if name not in {None, layer, of_fit} and _suits(adata, name, genes, fitted):
            return f"layers[{name!r}] matches: pass layer={name!r}."
    if layer is not None and _suits(adata, None, genes, fitted):
        return f"X matches: call {place} = adata.X{'' if adata.isbacked else '.copy()'} first."
    raw = adata.raw
    if raw is not None and raw.var_names.is_unique and adata.var_names.isin(raw.var_names).all():
        # in a file, what is selected of it is read a few cells at a time
        whole = ad.AnnData(raw.X, obs=pd.DataFrame(index=adata.obs_names), var=pd.DataFrame(index=raw.var_names))
        if _suits(whole[:, adata.var_names], None, genes, fitted):
            if adata.isbacked and of_fit is None:  # whose X cannot be written to
                return "raw matches: call adata.layers['raw'] = adata.raw[:, adata.var_names].X and pass layer='raw'."
            return f"raw matches: call {place} = adata.raw[:, adata.var_names].X first."
    return None


def _suits(adata: ad.AnnData, layer: str | None, genes: np.ndarray, fitted: _Fitted) -> bool:
    try:
        matrix = read_matrix(adata, layer, genes=genes, normalize=fitted.normalize, stored_only=fitted.ratings)
    except (KeyError, TypeError, ValueError):
        return False
    kind = cast("ValueKind", matrix.kind)
    if kind.maximum > fitted.most or kind.minimum < fitted.least:
        return False
    return fitted.other_kind(matrix) is None and fitted.other_scale(matrix) is None


def _as_read(matrix: CellMatrix) -> ValueKind:
    """The kind of the values as they were read."""
    return matrix.normalised.kind if matrix.normalised else cast("ValueKind", matrix.kind)
