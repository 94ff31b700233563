"""Files of counts larger than memory for `out_of_memory.py`, simulated and written a few cells at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

N_TYPES, N_FACTORS = 12, 15
CELLS_AT_A_TIME = 2000
# what h5py would choose for a billion values
VALUES_PER_CHUNK = 61_036


def simulated(n_cells: int, n_genes: int, density: float, seed: int = 0) -> Iterator[sp.csr_array]:
    """Poisson counts of types one after the other, with rates of low rank, of which about `density` are above zero."""
    rng = np.random.default_rng(seed)
    abundance = rng.normal(0.0, 1.5, n_genes)
    loadings = rng.normal(0.0, 1.0, (N_FACTORS, n_genes)) * np.linspace(0.35, 0.1, N_FACTORS)[:, None]
    centers = rng.normal(0.0, 1.0, (N_TYPES, N_FACTORS))
    types = np.sort(rng.choice(N_TYPES, n_cells, p=rng.dirichlet(np.full(N_TYPES, 5.0))))
    abundance += _shift_for(density, abundance + centers @ loadings)
    abundance, loadings = abundance.astype(np.float32), loadings.astype(np.float32)
    for start in range(0, n_cells, CELLS_AT_A_TIME):
        of_type = types[start : start + CELLS_AT_A_TIME]
        cells = centers[of_type] + rng.normal(0.0, 0.5, (len(of_type), N_FACTORS))
        rate = np.exp(abundance + cells.astype(np.float32) @ loadings)
        rate *= rng.lognormal(-0.08, 0.4, (len(of_type), 1)).astype(np.float32)
        yield _poisson(rate, rng)


def _shift_for(density: float, log_rate: np.ndarray) -> float:
    """What is added to log rates so that a share of the counts is above zero."""
    low, high = -20.0, 20.0
    for _ in range(50):
        shift = (low + high) / 2
        share = -np.expm1(-np.exp(log_rate + shift)).mean()
        low, high = (shift, high) if share < density else (low, shift)
    return shift


def _poisson(rate: np.ndarray, rng: np.random.Generator) -> sp.csr_array:
    """Counts that are Poisson: most are zero, so that the others alone are drawn in full."""
    zero = np.exp(-rate)
    row, gene = np.nonzero(rng.random(rate.shape, dtype=np.float32) >= zero)
    rates = rate[row, gene].astype(np.float64)
    # first arrival before the end of the interval, then as many as there are in the rest of it
    first = -np.log1p(rng.random(len(rates)) * np.expm1(-rates))
    counts = 1 + rng.poisson(np.maximum(rates - first, 0.0))
    starts = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(rate)))])
    return sp.csr_array((counts.astype(np.float32), gene.astype(np.int32), starts), shape=rate.shape)


def write(path: Path, shape: tuple[int, int], blocks: Iterator[sp.csr_array], n_values: int) -> int:
    """Write a file of anndata, compressed or not as its name says, of at least `n_values`; the number of values."""
    frame = ad.AnnData(obs=_names("cell", shape[0]), var=_names("gene", shape[1]))
    if path.suffix == ".zarr":
        import zarr

        store: Any = zarr.open_group(path, mode="w", zarr_format=3)
        for name in ("obs", "var"):
            ad.io.write_elem(store, name, getattr(frame, name))
        return _write_values(store, shape, blocks, _zarr_column)
    frame.write_h5ad(path)
    gzip = "gzip" in path.name

    def column(group: Any, name: str, dtype: str) -> Any:
        if not gzip and n_values:  # in one piece, as anndata writes it
            return group.create_dataset(name, (n_values,), dtype)
        chunks = {"maxshape": (None,), "chunks": (VALUES_PER_CHUNK,)}
        return group.create_dataset(name, (0,), dtype, **chunks, compression="gzip" if gzip else None)

    with h5py.File(path, "a") as file:
        return _write_values(file, shape, blocks, column)


def _zarr_column(group: Any, name: str, dtype: str) -> Any:
    return group.create_array(name, shape=(0,), dtype=dtype, chunks=(VALUES_PER_CHUNK,))


def _names(stem: str, count: int) -> pd.DataFrame:
    return pd.DataFrame(index=[f"{stem}_{number}" for number in range(count)])


def _write_values(store: Any, shape: tuple[int, int], blocks: Iterator[sp.csr_array], column: Any) -> int:
    if "X" in store:
        del store["X"]
    group = store.create_group("X")
    group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": list(shape)})
    data, indices = column(group, "data", "f4"), column(group, "indices", "i4")
    starts, n = [np.zeros(1, dtype=np.int64)], 0
    for block in blocks:
        for held, part in ((data, block.data), (indices, block.indices)):
            if held.shape[0] < n + block.nnz:
                held.resize((n + block.nnz,))
            held[n : n + block.nnz] = part
        starts.append(n + block.indptr[1:].astype(np.int64))
        n += block.nnz
    ad.io.write_elem(group, "indptr", np.concatenate(starts))
    return n


def opened(path: Path) -> ad.AnnData:
    """The AnnData, with its values in the file."""
    if path.suffix != ".zarr":
        return ad.read_h5ad(path, backed="r")
    import zarr

    group = zarr.open_group(path, mode="r")
    return ad.AnnData(
        ad.io.sparse_dataset(group["X"]), obs=ad.io.read_elem(group["obs"]), var=ad.io.read_elem(group["var"])
    )


def slices_of(adata: ad.AnnData) -> Iterator[sp.csr_matrix]:
    """Every cell once, as anndata reads slices."""
    for start in range(0, adata.n_obs, CELLS_AT_A_TIME):
        yield adata.X[start : start + CELLS_AT_A_TIME]
