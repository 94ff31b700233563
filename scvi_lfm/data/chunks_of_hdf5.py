"""Chunks of HDF5 datasets: gzip, be it after a shuffle of bytes or not."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

GZIP, SHUFFLE = 1, 2  # as HDF5 numbers its filters


def decompressor(array: Any) -> Callable[[int], bytes] | None:
    """What gives the values of a chunk by its number; None where the library has to."""
    filters = _filters(array)
    every_chunk = -(-array.shape[0] // array.chunks[0])
    # chunks that nobody wrote are not in the file
    if filters not in ([GZIP], [SHUFFLE, GZIP]) or array.id.get_num_chunks() != every_chunk:
        return None
    size, itemsize = array.chunks[0], array.dtype.itemsize

    def decompress(number: int) -> bytes:
        skipped, stored = array.id.read_direct_chunk((number * size,))
        for place, kind in reversed([*enumerate(filters)]):
            if skipped >> place & 1:  # noted of each chunk: a filter that was of no use to it
                continue
            stored = _gunzipped(stored, size * itemsize) if kind == GZIP else _unshuffled(stored, itemsize)
        return bytes(stored)

    return decompress


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
