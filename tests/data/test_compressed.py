"""Compressed columns of files, read by our own hand: the library's answer, to the bit."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import h5py
import numcodecs
import numpy as np
import pytest
import zarr
from zarr import codecs

from scvi_lfm.data.compressed import CompressedColumn, column_of

N, CHUNK = 1000, 96
PARTS = [slice(0, N), slice(0, 1), slice(95, 97), slice(96, 192), slice(200, 777), slice(990, 2000), slice(5, 5)]
KNOWN = [{"compression": "gzip"}, {"compression": "gzip", "compression_opts": 9, "shuffle": True}]
OTHERS = [
    {},
    {"compression": "lzf"},
    {"compression": "gzip", "fletcher32": True},
    {"compression": "gzip", "scaleoffset": 0},
]


@pytest.fixture
def file(tmp_path):
    with h5py.File(tmp_path / "columns.h5", "w") as file:
        yield file


def values(dtype):
    return np.random.default_rng(0).integers(0, 200, N).astype(dtype)


@pytest.mark.parametrize("options", KNOWN, ids=["gzip", "shuffle"])
@pytest.mark.parametrize("dtype", ["f4", "f8", "i4", "i8", "u1", "f2", ">f4", ">i8"])
def test_reads_what_the_library_reads(file, dtype, options):
    dataset = file.create_dataset("x", data=values(dtype), chunks=(CHUNK,), maxshape=(None,), **options)
    column = column_of(dataset)
    assert isinstance(column, CompressedColumn)
    assert (column.shape, column.dtype) == (dataset.shape, dataset.dtype)
    for part in PARTS:
        found = column[part]
        assert found.dtype == dataset.dtype
        np.testing.assert_array_equal(found, dataset[part])


@pytest.mark.parametrize("options", OTHERS, ids=lambda options: "-".join(map(str, options.values())) or "plain")
def test_leaves_what_it_does_not_know_to_the_library(file, options):
    dataset = file.create_dataset("x", data=values("i4"), chunks=(CHUNK,), **options)
    assert column_of(dataset) is dataset


def test_leaves_what_is_not_all_there_to_the_library(file):
    contiguous = file.create_dataset("contiguous", data=values("f4"))
    unwritten = file.create_dataset("unwritten", (N,), "f4", chunks=(CHUNK,), compression="gzip", fillvalue=3)
    unwritten[: 2 * CHUNK] = 1
    for dataset in (contiguous, unwritten):
        assert column_of(dataset) is dataset


def test_a_chunk_that_no_filter_was_of_use_to(file):
    dataset = file.create_dataset("x", data=values("f4"), chunks=(CHUNK,), compression="gzip", shuffle=True)
    plain = np.arange(CHUNK, dtype="f4")
    dataset.id.write_direct_chunk((CHUNK,), plain.tobytes(), filter_mask=3)
    np.testing.assert_array_equal(column_of(dataset)[slice(CHUNK, 2 * CHUNK)], plain)


@pytest.mark.parametrize("stored", [b"no gzip", b""])
def test_a_chunk_that_is_damaged(file, stored):
    dataset = file.create_dataset("x", data=values("f4"), chunks=(CHUNK,), compression="gzip")
    dataset.id.write_direct_chunk((0,), stored or dataset[:50].tobytes(), filter_mask=0 if stored else 1)
    with pytest.raises(ValueError, match=r"a chunk cannot be decompressed|chunk 0 holds 200 bytes instead of 384"):
        column_of(dataset)[0:10]


def test_threads_read_at_the_same_time(file):
    dataset = file.create_dataset("x", data=values("i8"), chunks=(7,), compression="gzip")
    column, whole = column_of(dataset), dataset[:]
    parts = [slice(start, start + 23) for start in range(0, N, 11)] * 5
    with ThreadPoolExecutor(4) as pool:
        for part, found in zip(parts, pool.map(column.__getitem__, parts), strict=True):
            np.testing.assert_array_equal(found, whole[part])


COMPRESSED_ZARR = [
    (2, numcodecs.Zstd(level=3)),
    (2, numcodecs.Blosc("lz4", shuffle=numcodecs.Blosc.SHUFFLE)),
    (2, numcodecs.Blosc("zstd", shuffle=numcodecs.Blosc.BITSHUFFLE)),
    (2, numcodecs.GZip()),
    (3, codecs.ZstdCodec(level=0)),
    (3, codecs.ZstdCodec(level=5, checksum=True)),
    (3, codecs.BloscCodec(cname="lz4")),
    (3, codecs.GzipCodec()),
]


def zarr_array(folder, zarr_format=3, *, data=None, **options):
    store = zarr.open_group(folder, mode="a", zarr_format=zarr_format)
    return store.create_array("inside/x", data=values("f4") if data is None else data, chunks=(CHUNK,), **options)


@pytest.mark.parametrize("dtype", ["f4", "f8", "i4", "u1"])
@pytest.mark.parametrize(("zarr_format", "compressor"), COMPRESSED_ZARR)
def test_reads_what_zarr_reads(tmp_path, zarr_format, compressor, dtype):
    array = zarr_array(tmp_path, zarr_format, data=values(dtype), compressors=[compressor])
    column = column_of(array)
    assert isinstance(column, CompressedColumn)
    assert (column.shape, column.dtype) == (array.shape, array.dtype)
    for part in PARTS:
        found = column[part]
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array[part])


@pytest.mark.parametrize(
    "options",
    [
        {"compressors": None},
        {"shards": (3 * CHUNK,), "compressors": None},
        {"shards": {"shape": (3 * CHUNK,), "index_location": "start"}},
        {"filters": [codecs.TransposeCodec(order=(0,))]},
        {"serializer": codecs.BytesCodec(endian="big")},
        {"zarr_format": 2, "compressors": [numcodecs.LZ4()]},
        {"zarr_format": 2, "filters": [numcodecs.Delta("f4")]},
        {"zarr_format": 2, "data": values(">f4")},
    ],
    ids=str,
)
def test_leaves_what_it_does_not_know_to_zarr(tmp_path, options):
    array = zarr_array(tmp_path, **options)
    assert column_of(array) is array


def test_leaves_what_is_in_no_folder_to_zarr():
    array = zarr.open_group(zarr.storage.MemoryStore(), mode="w").create_array("x", data=values("f4"), chunks=(CHUNK,))
    assert column_of(array) is array


@pytest.mark.parametrize("compressor", [codecs.ZstdCodec(level=0), codecs.BloscCodec(cname="lz4")])
@pytest.mark.parametrize("dtype", ["f4", "i8"])
def test_reads_chunks_of_shards(tmp_path, dtype, compressor):
    array = zarr_array(tmp_path, data=values(dtype), shards=(3 * CHUNK,), compressors=[compressor])
    column = column_of(array)
    assert isinstance(column, CompressedColumn)
    for part in PARTS:
        np.testing.assert_array_equal(column[part], array[part])


@pytest.mark.parametrize(("zarr_format", "shards"), [(2, None), (3, None), (3, (3 * CHUNK,))])
def test_chunks_of_zarr_that_nobody_wrote(tmp_path, zarr_format, shards):
    store = zarr.open_group(tmp_path, mode="w", zarr_format=zarr_format)
    array = store.create_array("x", shape=(N,), chunks=(CHUNK,), dtype="f4", fill_value=3, shards=shards)
    array[CHUNK : 2 * CHUNK] = 1
    np.testing.assert_array_equal(column_of(array)[0:N], array[:])


@pytest.mark.parametrize(("zarr_format", "compressor"), COMPRESSED_ZARR)
def test_a_chunk_of_zarr_that_is_damaged(tmp_path, zarr_format, compressor):
    array = zarr_array(tmp_path, zarr_format, compressors=[compressor])
    (chunk,) = (path for path in tmp_path.rglob("*") if path.is_file() and path.name == "0")
    whole = chunk.read_bytes()
    for content in (b"", b"not a compressed chunk", whole[: len(whole) // 2]):
        chunk.write_bytes(content)
        with pytest.raises((ValueError, RuntimeError, OSError)):
            column_of(array)[0:10]
