"""Columns of HDF5 files that are compressed by chunks, which threads decompress at the same time.

The library decompresses one chunk at a time, whoever asks, and what it needs for that takes as long as the rest of a
fit. So chunks are read as they lie in the file, and each thread decompresses its own.
"""

from __future__ import annotations

import zlib
from functools import cached_property
from typing import Any

import numpy as np

from .cache import Cache

# where two readers meet, both need the chunk that their borders lie in
CHUNKS_KEPT = 4
# decompressed, a chunk takes a part of a processor's cache or of a block; larger ones are left to the library
LARGEST_CHUNK = 2**25
GZIP, SHUFFLE = 1, 2  # as HDF5 numbers its filters


class CompressedColumn:
    """A one-dimensional dataset, sliced as the library's is: gzip, be it after a shuffle of bytes or not."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        self.shape, self.dtype = dataset.shape, dataset.dtype
        self._filters = _filters(dataset)

    def __getitem__(self, part: slice) -> np.ndarray:
        """Consecutive values."""
        start, stop, _ = part.indices(self.shape[0])
        size = self._dataset.chunks[0]
        found = np.empty(max(stop - start, 0), self.dtype)
        for number in range(start // size, -(-stop // size) if stop > start else 0):
            first = number * size
            inside = slice(max(start, first), min(stop, first + size))
            chunk = self._chunks.get(number)
            found[inside.start - start : inside.stop - start] = chunk[inside.start - first : inside.stop - first]
        return found

    @cached_property
    def _chunks(self) -> Cache[np.ndarray]:
        return Cache(self._decompressed, CHUNKS_KEPT)

    def _decompressed(self, number: int) -> np.ndarray:
        size, itemsize = self._dataset.chunks[0], self.dtype.itemsize
        skipped, stored = self._dataset.id.read_direct_chunk((number * size,))
        for place, kind in reversed([*enumerate(self._filters)]):
            if skipped >> place & 1:  # noted of each chunk: a filter that was of no use to it
                continue
            stored = _gunzipped(stored, size * itemsize) if kind == GZIP else _unshuffled(stored, itemsize)
        if len(stored) != size * itemsize:
            msg = f"chunk {number} holds {len(stored)} bytes instead of {size * itemsize}"
            raise ValueError(msg)
        return np.frombuffer(stored, self.dtype)


def column_of(dataset: Any) -> Any:
    """Reader of a one-dimensional dataset: the dataset itself, unless threads can decompress its chunks."""
    import h5py

    known = isinstance(dataset, h5py.Dataset) and dataset.chunks is not None and dataset.dtype.kind in "fiu"
    if not known or dataset.chunks[0] * dataset.dtype.itemsize > LARGEST_CHUNK:
        return dataset
    every_chunk = -(-dataset.shape[0] // dataset.chunks[0])
    # chunks that nobody wrote are not in the file
    if _filters(dataset) not in ([GZIP], [SHUFFLE, GZIP]) or dataset.id.get_num_chunks() != every_chunk:
        return dataset
    return CompressedColumn(dataset)


def _filters(dataset: Any) -> list[int]:
    settings = dataset.id.get_create_plist()
    return [settings.get_filter(place)[0] for place in range(settings.get_nfilters())]


def _gunzipped(stored: bytes, size: int) -> bytes:
    try:
        return zlib.decompress(stored, bufsize=size)
    except zlib.error as error:
        msg = f"a chunk cannot be decompressed: {error}"
        raise ValueError(msg) from error


def _unshuffled(stored: bytes, itemsize: int) -> bytes:
    """Bytes of values, of which all first ones came first, then all second ones, and so on."""
    return np.frombuffer(stored, np.uint8).reshape(itemsize, -1).T.tobytes()
