"""Rows that are computed when they are asked for: a dask array of what a function makes of cells, by chunks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .cluster import Held, hold_function, on_one_thread
from .opening import is_dask
from .packing import outlined, pickled, unpickled

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anndata import AnnData


def chunks_of_cells(adata: AnnData, layer: str | None) -> list[int] | None:
    """Numbers of cells of the chunks of the dask array that is `X` or a layer; None: it is none, or is not there."""
    values = adata.X if layer is None else adata.layers.get(layer)
    if not is_dask(values):
        return None
    sizes = values.chunks[0]
    return None if np.isnan(np.asarray(sizes, float)).any() else list(map(int, sizes))


def lazy_rows(
    function: Callable[[Any], np.ndarray], parts: Sequence[Any], sizes: Sequence[int], n_columns: int, dtype: np.dtype
) -> Any:
    """Dask array of the rows, `sizes` of them, that `function` makes of each part; tensors of both are held once."""
    import dask
    import dask.array as da

    outline, tensors = outlined(function)
    known = dask.delayed(hold_function, pure=False)(outline, pickled(tensors))
    made = [dask.delayed(_rows, pure=False)(known, pickled(part, tensors)) for part in parts]
    blocks = [da.from_delayed(one, (size, n_columns), dtype) for one, size in zip(made, sizes, strict=True)]
    return da.concatenate(blocks)


@on_one_thread
def _rows(function: Held, packed: bytes) -> np.ndarray:
    return function.what(unpickled(packed, function.tensors))
