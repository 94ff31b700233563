"""Which entries `tl.fit` takes for data: the matrix less what is not, and what is wrong with such a choice."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from .._calls import warn_user
from .._settings import settings
from .._validate import place_of
from ..data import Observed, read_held_out, restrict
from ..data.kind import looks_like_expression
from ..data.source import ones_at
from ..posterior.store.layout import stored_bytes

if TYPE_CHECKING:
    import pandas as pd
    import scipy.sparse as sp

    from ..data import CellMatrix
    from ..data.counted import CellSample
    from ._fit_request import FitRequest


def observed_part(request: FitRequest, matrix: CellMatrix) -> CellMatrix:
    """The values that are data, those held out kept aside.

    Raises
    ------
    TypeError, ValueError, KeyError
        The choice cannot be used with these data, or with other arguments.
    """
    given = request.arguments
    mask = read_held_out(request.adata, given.held_out, genes=request.fitted)
    part = _part(matrix, given.observed, mask, request.some)
    if part.observed is None:
        return part
    asked = "`held_out`" if given.observed == "all" else "`observed`='stored'"
    if given.engine == "pyro":
        msg = f"{asked} belongs to engine='natural_gradient', found engine='pyro'. Leave engine out."
        raise ValueError(msg)
    if given.noise == "cell_gene":
        msg = f"{asked} does not go with noise='cell_gene'. Pass noise='shared' or noise='gene'."
        raise ValueError(msg)
    if given.covariates is not None and given.likelihood == "normal":
        msg = f"{asked} does not go with `covariates` under likelihood='normal'. Leave one of the two out."
        raise ValueError(msg)
    return part


def _part(matrix: CellMatrix, observed: str, mask: sp.csr_array | None, some: CellSample | None) -> CellMatrix:
    """The values that are data; where they are those of some cells, none or all of these may be held out."""
    if some is None or mask is None:
        return restrict(matrix, observed, mask)
    mask = mask[some.cells]
    try:
        part = restrict(matrix, observed, mask)
    except ValueError:
        part = restrict(matrix, observed, None)
    return part if part.observed else replace(part, observed=Observed(ones_at(mask), only=False))


def check_cov_bytes(n_factors: int, n_rows: int, when: str) -> None:
    """Raise if covariances of so many rows are more than may be stored."""
    needed = stored_bytes(n_factors, n_rows)
    if needed > settings.max_cov_bytes:
        msg = (
            f"{when} every cell and gene has a covariance of its own; those of {n_rows:,} take {needed:,} bytes, more "
            f"than settings.max_cov_bytes = {settings.max_cov_bytes:,}. Raise that, or fit fewer factors."
        )
        raise ValueError(msg)


def warn_about_observed(
    matrix: CellMatrix, layer: str | None, cells: pd.Index, genes: pd.Index, *, likelihood: str
) -> None:
    """Warn about cells and genes without an observed value, and where unseen entries look like zeros."""
    if matrix.observed is None:
        return
    where = place_of(layer)
    pattern, only = matrix.observed.pattern, matrix.observed.only
    for what, names, counts, full in (
        ("cell", cells, np.diff(pattern.indptr), pattern.shape[1]),
        ("gene", genes, np.bincount(pattern.indices, minlength=pattern.shape[1]), pattern.shape[0]),
    ):
        unseen = counts == (0 if only else full)
        if unseen.any():
            msg = (
                f"{int(unseen.sum())} {what}(s) of {where} have no observed value, first {names[unseen][0]!r}; "
                "they get what their prior says."
            )
            warn_user(msg)
    if only and likelihood == "normal" and looks_like_expression(matrix.source):
        msg = (
            f"`observed`='stored' takes the entries that {where} does not store for unseen, and its values look like "
            "expression, where they are zeros: in most cells, the least value is among the most frequent. Pass "
            "observed='all' if they are."
        )
        warn_user(msg)
