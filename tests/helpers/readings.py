"""How often a call reads the data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scvi_lfm.data.memory import MemorySource

if TYPE_CHECKING:
    from collections.abc import Callable

    import anndata as ad
    import numpy as np
    import pytest
    import scipy.sparse as sp


def readings(function: Callable[[ad.AnnData], object], adata: ad.AnnData, monkeypatch: pytest.MonkeyPatch) -> float:
    """How many times the call reads all cells, from whichever source."""
    n_rows, read = 0, MemorySource.rows

    def rows(source: MemorySource, which: slice | np.ndarray) -> sp.csr_array | np.ndarray:
        nonlocal n_rows
        block = read(source, which)
        n_rows += block.shape[0]
        return block

    with monkeypatch.context() as patch:
        patch.setattr(MemorySource, "rows", rows)
        function(adata)
    return n_rows / adata.n_obs
