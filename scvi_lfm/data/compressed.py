"""Columns of files that are compressed by chunks, which threads decompress at the same time.

The libraries decompress one chunk at a time, whoever asks, and what they need for that takes as long as the rest of a
fit. So chunks are read as they lie in the file, and each thread decompresses its own.
"""

from __future__ import annotations

import sys
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from . import chunks_of_hdf5, chunks_of_zarr
from .cache import Cache

if TYPE_CHECKING:
    from collections.abc import Callable

# where two readers meet, both need the chunk that their borders lie in
CHUNKS_KEPT = 4
# decompressed, a chunk takes a part of a processor's cache or of a block; larger ones are left to the library
LARGEST_CHUNK = 2**25


class CompressedColumn:
    """A one-dimensional array of a file, sliced as the library's is."""

    def __init__(self, array: Any, decompress: Callable[[int], bytes]) -> None:
        self.shape, self.dtype, self._size = array.shape, array.dtype, array.chunks[0]
        self._decompress = decompress  # a chunk by its number

    def __getitem__(self, part: slice) -> np.ndarray:
        """Consecutive values."""
        start, stop, _ = part.indices(self.shape[0])
        size = self._size
        found = np.empty(max(stop - start, 0), self.dtype)
        for number in range(start // size, -(-stop // size) if stop > start else 0):
            first = number * size
            inside = slice(max(start, first), min(stop, first + size))
            chunk = self._chunks.get(number)
            found[inside.start - start : inside.stop - start] = chunk[inside.start - first : inside.stop - first]
        return found

    @cached_property
    def _chunks(self) -> Cache[np.ndarray]:
        return Cache(self._chunk, CHUNKS_KEPT)

    def _chunk(self, number: int) -> np.ndarray:
        values, n_bytes = self._decompress(number), self._size * self.dtype.itemsize
        if len(values) != n_bytes:
            msg = f"chunk {number} holds {len(values)} bytes instead of {n_bytes}"
            raise ValueError(msg)
        return np.frombuffer(values, self.dtype)


def column_of(array: Any) -> Any:
    """Reader of a one-dimensional array of a file: the array itself, unless threads can decompress its chunks."""
    import h5py

    zarr = sys.modules.get("zarr")
    if isinstance(array, h5py.Dataset):
        decompressor = chunks_of_hdf5.decompressor
    elif zarr is not None and isinstance(array, zarr.Array):
        decompressor = chunks_of_zarr.decompressor
    else:
        return array
    if array.chunks is None or array.dtype.kind not in "fiu" or array.chunks[0] * array.dtype.itemsize > LARGEST_CHUNK:
        return array
    decompress = decompressor(array)
    return array if decompress is None else CompressedColumn(array, decompress)
