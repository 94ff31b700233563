"""What the values of `tl.fit` look like, which a Normal wants log-normalised, and whether the fit does that itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .._calls import warn_user
from .._fit_arguments import AUTO, CONTINUOUS
from .._validate import place_of
from ..data.kind import ValuesWarning, in_units_of_cells, looks_like, looks_logged

if TYPE_CHECKING:
    from .._fit_arguments import FitArguments
    from ..data import CellMatrix
    from ..data.kind import ValueKind


def check_normalize(given: FitArguments) -> None:
    """Raise if counts are to be log-normalised for a fit that has no use for such values."""
    if given.normalize is None:
        return
    asked = f"`normalize`={given.normalize:g}"
    if given.likelihood not in (AUTO, *CONTINUOUS):
        msg = (
            f"{asked} makes log-normalised values, which are for likelihood='normal' or 'student_t', found "
            f"likelihood={given.likelihood!r}. Leave one of the two out: normalize= fits a Normal to the logarithms, "
            "without it the likelihood is that of the values as they are."
        )
        raise ValueError(msg)
    if given.observed == "stored":
        msg = (
            f"{asked} scales each cell by its total, which entries that were not seen are a part of, found "
            "observed='stored'. Leave one of the two out: counts that a sparse matrix does not store are zeros."
        )
        raise ValueError(msg)
    if given.size_factors is not None:
        msg = f"{asked} scales cells by their totals, and `size_factors` are for counts. Leave one of the two out."
        raise ValueError(msg)


def looks_of(matrix: CellMatrix, kind: ValueKind) -> str | None:
    """Likeness of values to such as a Normal is not made for, or as are not to be normalised; None: to none."""
    if matrix.normalised is None:
        return looks_like(matrix.source, kind)
    logged = looks_logged(matrix.normalised.kind, matrix.normalised.totals)
    return "logged" if logged and not in_units_of_cells(matrix.source, np.expm1) else None


def warn_about_kind(looks: str | None, kind: ValueKind, layer: str | None, likelihood: str, memory_first: str) -> None:
    """Warn if values, of a kind as they were read, look like what a continuous likelihood is not made for.

    `memory_first` is the call that goes before those which a backed AnnData does not take.
    """
    if looks is None:
        return
    place, also = ("adata.X", "") if layer is None else (f"adata.layers[{layer!r}]", f", layer={layer!r}")
    seen, mend = {
        "counts": (
            f"holds whole numbers, and likelihood={likelihood!r} is made for log-normalised values.",
            "If they are counts, pass normalize=1e4, which scales each cell to that total and takes log1p as it is "
            "read, or likelihood='negative_binomial'.",
        ),
        "unlogged": (
            f"holds values that look unlogged: the largest is {kind.maximum:,.4g}, the mean of those above zero "
            f"{kind.mean_present:,.3g}. Under likelihood={likelihood!r} a few abundant genes will rule the fit.",
            "If they are counts, on whatever scale, pass normalize=1e4, which scales each cell to that total and takes "
            f"log1p as it is read; if they are scaled as they should be, call {memory_first}sc.pp.log1p(adata{also}) "
            "first; for expected or corrected counts there is also likelihood='negative_binomial' after "
            f"{memory_first}{place} = np.rint({place}).",
        ),
        "scaled": (
            f"holds genes scaled to unit variance ({kind.span}), as sc.pp.scale leaves them: the noise of rare genes "
            "then weighs as much as the expression of others.",
            "Fit the log-normalised values, before sc.pp.scale, or from a layer (layer=) or "
            f"{memory_first}adata.raw.to_adata() that still holds them.",
        ),
        "logged": (
            f"holds values that look like logarithms already ({kind.span}, hardly any whole), and normalize= takes "
            "them again.",
            "If they are, leave normalize out, or pass the layer that holds counts (layer=).",
        ),
    }[looks]
    warn_user(ValuesWarning(looks, f"{place_of(layer)} {seen}", mend))
