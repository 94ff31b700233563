"""What `tl.fit` was asked for, as one record that goes from check to check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from anndata import AnnData

    from .._fit_arguments import FitArguments
    from ..data.counted import CellSample


@dataclass(frozen=True)
class FitRequest:
    """The data and the arguments of a fit, and which of the data it is about."""

    adata: AnnData
    arguments: FitArguments
    fitted: np.ndarray  # (m,) bool: genes to fit
    some: CellSample | None = None  # cells that a plan reads alone
