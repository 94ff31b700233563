"""Where the values of a source lie."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .dask_chunks import DaskSource
from .memory import MemorySource
from .on_disk import SparseFile
from .selected import Selected

if TYPE_CHECKING:
    from .source import CellSource


def place(source: CellSource) -> str:
    """`"memory"`, `"file"` or `"dask"`, of a source as it was opened."""
    whole = source.source if isinstance(source, Selected) else source
    return "memory" if isinstance(whole, MemorySource) else "dask" if isinstance(whole, DaskSource) else "file"


def knows_n_stored(source: CellSource) -> bool:
    """Whether the number of stored entries is known without a reading."""
    return isinstance(source, MemorySource | SparseFile) or not source.is_sparse
