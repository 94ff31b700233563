"""Chunks of zarr arrays in a folder: compressed by Zstandard, Blosc or gzip, in either format, in shards or not."""

from __future__ import annotations

import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

COMPRESSORS = ("zstd", "blosc", "gzip")  # what they decompress is told by their bytes alone
# at the end of a shard: where each chunk begins and how many bytes it has, and a checksum of that
INDEX_CODECS, INDEX_TYPE, CHECKSUM_BYTES = ["bytes", "crc32c"], np.dtype("<u8"), 4
NOT_WRITTEN = np.iinfo(INDEX_TYPE).max


def decompressor(array: Any) -> Callable[[int], bytes] | None:
    """What gives the values of a chunk by its number; None where the library has to."""
    import numcodecs
    import zarr

    local = getattr(zarr.storage, "LocalStore", None)  # versions before 3 have none, nor what is asked below
    if local is None or not isinstance(array.store, local) or array.filters or not array.dtype.isnative:
        return None
    names = _compressors(array)
    if len(names) != 1 or names[0] not in COMPRESSORS:
        return None
    decode = numcodecs.get_codec({"id": names[0]}).decode
    folder, key = Path(array.store.root) / array.path, array.metadata.encode_chunk_key
    unwritten = np.full(array.chunks, 0 if array.fill_value is None else array.fill_value, array.dtype).tobytes()
    in_shard = 1 if array.shards is None else array.shards[0] // array.chunks[0]

    def decompress(number: int) -> bytes:
        path, place = folder / key((number // in_shard,)), number % in_shard
        try:
            stored = path.read_bytes() if array.shards is None else _of_shard(path, place, in_shard)
        except FileNotFoundError:
            stored = None
        if stored is None:
            return unwritten
        try:
            return bytes(decode(stored))
        except (zlib.error, EOFError) as error:
            msg = f"a chunk cannot be decompressed: {error}"
            raise ValueError(msg) from error

    return decompress


def _compressors(array: Any) -> list[str]:
    """What compressed the bytes of values as this machine has them; none where it is not that simple."""
    if array.metadata.zarr_format == 2:
        return [compressor.codec_id for compressor in array.compressors]
    codecs = array.metadata.to_dict()["codecs"]
    if array.shards is not None:
        sharding = codecs[0]["configuration"]
        if len(codecs) > 1 or sharding["index_location"] != "end" or _names(sharding["index_codecs"]) != INDEX_CODECS:
            return []
        codecs = sharding["codecs"]
    order = codecs[0].get("configuration", {}).get("endian", sys.byteorder)
    return _names(codecs[1:]) if codecs[0]["name"] == "bytes" and order == sys.byteorder else []


def _names(codecs: Any) -> list[str]:
    return [codec["name"] for codec in codecs]


def _of_shard(path: Path, place: int, count: int) -> bytes | None:
    """A chunk of a shard of so many; None if it was not written."""
    with path.open("rb") as file:
        file.seek(-(2 * INDEX_TYPE.itemsize * (count - place) + CHECKSUM_BYTES), 2)
        first, n_bytes = np.frombuffer(file.read(2 * INDEX_TYPE.itemsize), INDEX_TYPE).tolist()
        if n_bytes == NOT_WRITTEN:
            return None
        file.seek(first)
        return file.read(n_bytes)
