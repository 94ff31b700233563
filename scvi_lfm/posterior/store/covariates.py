"""Covariates of a stored fit: how they are coded, read back as the covariates of any cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..._keys import COVARIATES
from ..._validate import in_memory
from ...data import code

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData


def n_known(uns: Mapping[str, Any]) -> int:
    """Number of covariates of a stored fit."""
    return len(uns[COVARIATES]) if COVARIATES in uns else 0


def known_of_cells(adata: AnnData, uns: Mapping[str, Any]) -> np.ndarray:
    """Covariates of the cells of `adata`, (n, p), coded as the fit did."""
    if COVARIATES not in uns:
        return np.empty((adata.n_obs, 0))
    coding = pd.DataFrame(uns[COVARIATES]).reset_index(drop=True)
    # files may give strings back as categories
    coding = coding.astype(dict.fromkeys(("column", "kind", "level", "reference"), object))
    return code(in_memory(adata.obs), coding)
