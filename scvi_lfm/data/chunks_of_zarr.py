"""Chunks of zarr arrays in a folder: compressed by Zstandard, Blosc or gzip, in either format."""

from __future__ import annotations

import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

COMPRESSORS = ("zstd", "blosc", "gzip")  # what they decompress is told by their bytes alone


def decompressor(array: Any) -> Callable[[int], bytes] | None:
    """What gives the values of a chunk by its number; None where the library has to."""
    import numcodecs
    import zarr

    local = getattr(zarr.storage, "LocalStore", None)  # versions before 3 have none, nor what is asked below
    if local is None or not isinstance(array.store, local):
        return None
    names = [_name(compressor) for compressor in array.compressors]
    if array.shards is not None or array.filters or not array.dtype.isnative or len(names) != 1:
        return None
    if names[0] not in COMPRESSORS or not _is_native(array.serializer):
        return None
    decode = numcodecs.get_codec({"id": names[0]}).decode
    folder = Path(array.store.root) / array.path
    unwritten = np.full(array.chunks, 0 if array.fill_value is None else array.fill_value, array.dtype).tobytes()

    def decompress(number: int) -> bytes:
        try:
            stored = (folder / array.metadata.encode_chunk_key((number,))).read_bytes()
        except FileNotFoundError:
            return unwritten
        try:
            return bytes(decode(stored))
        except (zlib.error, EOFError) as error:
            msg = f"a chunk cannot be decompressed: {error}"
            raise ValueError(msg) from error

    return decompress


def _name(compressor: Any) -> str:
    """What a compressor is called in the metadata."""
    if hasattr(compressor, "codec_id"):
        return str(compressor.codec_id)
    return str(compressor.to_dict()["name"])


def _is_native(serializer: Any) -> bool:
    """Whether bytes of chunks are values as this machine has them; the older format writes them as their type says."""
    if serializer is None:
        return True
    written = serializer.to_dict()
    order = written.get("configuration", {}).get("endian", sys.byteorder)
    return written["name"] == "bytes" and order == sys.byteorder
