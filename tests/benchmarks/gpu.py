"""What a large fit costs on a GPU, beside the least that its bytes cost and beside a truncated SVD.

    python tests/benchmarks/gpu.py [--device cuda] [--cells 1300000] [--genes 28000] [--stored 2000] [--factors 50]
        [--count-cells 1000000] [--count-genes 5000] [--count-factors 30]
    python tests/benchmarks/gpu.py --device cpu --cells 5000 --genes 1000 --stored 100 --factors 10 --count-cells 2000
        --count-genes 300 --count-factors 5

Values are simulated in chunks of cells, on the host, with planted factors; `--stored` of them in a cell, so that the
default has 2.6e9. Printed are the device, what it copies in a second, and

normal   `tl.fit` to convergence, checks and the first copy in it; its epochs; and two floors: to send the values
         to the device once an epoch, and to read them there for the four products of a step
svd      `torch.svd_lowrank` of the same sparse matrix, two iterations, the copy in it
counts   the second epoch of a negative binomial fit: two epochs less one

The defaults take some 60 GB of the host's memory and 40 GB of the device's; every size is an option.
"""

import argparse
import time
import warnings
from functools import partial

import anndata as ad
import numpy as np
import scipy.sparse as sp
import torch

import scvi_lfm as lfm

CHUNK = 5_000
PLANTED = 10
BYTES_STORED = 8  # a float32 and an int32
PRODUCTS = 4  # of a step: cells under both genes, values and their squares by gene


def simulated(n_cells: int, n_genes: int, stored: int, *, counts: bool, seed: int = 0) -> sp.csr_array:
    """Cells by genes with about so many stored values in a cell, chunk by chunk."""
    rng = np.random.default_rng(seed)
    frequency = rng.gamma(0.5, size=n_genes) + 1e-3
    cumulated = np.cumsum(frequency / frequency.sum())
    loadings = rng.normal(scale=0.3, size=(n_genes, PLANTED)).astype(np.float32)
    total = 0
    data, indices, lengths = [], [], []
    for start in range(0, n_cells, CHUNK):
        n = min(CHUNK, n_cells - start)
        factors = rng.normal(size=(n, PLANTED)).astype(np.float32)
        # some genes are drawn twice
        drawn = np.searchsorted(cumulated, rng.random((n, stored + stored // 4)), side="right").clip(max=n_genes - 1)
        place = np.unique(np.arange(n)[:, None] * n_genes + drawn)
        cell, gene = np.divmod(place, n_genes)
        eta = np.einsum("ek,ek->e", factors[cell], loadings[gene])
        values = (
            rng.poisson(np.exp(eta.clip(max=5))) + 1 if counts else (1 + eta + rng.normal(scale=0.5, size=len(eta)))
        )
        data.append(values.astype(np.float32))
        indices.append(gene.astype(np.int32))
        lengths.append(np.bincount(cell, minlength=n))
        total += len(place)
    index_dtype = np.int32 if total < np.iinfo(np.int32).max else np.int64
    indptr = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(index_dtype)
    columns, values = np.empty(total, dtype=index_dtype), np.empty(total, dtype=np.float32)
    first = 0
    while data:
        part, where = data.pop(0), indices.pop(0)
        values[first : first + len(part)], columns[first : first + len(part)] = part, where
        first += len(part)
    return sp.csr_array((values, columns, indptr), shape=(n_cells, n_genes))


def wait(device: torch.device) -> None:
    """Until the device has done all that was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(device: torch.device, function: object) -> float:
    """Wall time of a call, the device's part in it."""
    wait(device)
    start = time.perf_counter()
    function()
    wait(device)
    return time.perf_counter() - start


def bandwidths(device: torch.device) -> tuple[float, float]:
    """Bytes a second from the host to the device, and from the device's memory."""
    host = torch.ones(2**26, dtype=torch.float32)
    here = host.to(device, copy=True)
    sent = min(seconds_of(device, lambda: here.copy_(host)) for _ in range(3))
    read = min(seconds_of(device, here.sum) for _ in range(3))
    return 4 * len(host) / sent, 4 * len(host) / read


def fitted(values: sp.csr_array, device: torch.device, **options: object) -> tuple[float, ad.AnnData]:
    """Seconds of a fit, and what it wrote."""
    adata = ad.AnnData(values)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        taken = seconds_of(device, lambda: lfm.tl.fit(adata, device=str(device), progress=False, **options))
    return taken, adata


def svd(values: sp.csr_array, device: torch.device, n_factors: int) -> None:
    """The peer."""
    parts = (torch.from_numpy(part).to(device) for part in (values.indptr, values.indices, values.data))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.svd_lowrank(torch.sparse_csr_tensor(*parts, size=values.shape), q=n_factors, niter=2)


def main() -> None:
    """Simulate, fit, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for name, size in {
        "cells": 1_300_000,
        "genes": 28_000,
        "stored": 2_000,
        "factors": 50,
        "count-cells": 1_000_000,
        "count-genes": 5_000,
        "count-factors": 30,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=size)
    given = parser.parse_args()
    device = torch.device(given.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)"
    sent, read = bandwidths(device)
    print(f"device   {name}: {sent / 1e9:.0f} GB/s from the host, {read / 1e9:.0f} GB/s from its memory", flush=True)

    values = simulated(given.cells, given.genes, given.stored, counts=False)
    print(f"values   {given.cells:,} x {given.genes:,}, {values.nnz:,} stored", flush=True)
    taken, adata = fitted(values, device, n_factors=given.factors, likelihood="normal")
    record = adata.uns["lfm"]
    epochs = float(np.max(record["elbo"]["epoch"]))
    to_send = epochs * values.nnz * BYTES_STORED / sent
    to_read = epochs * PRODUCTS * values.nnz * BYTES_STORED / read
    print(f"normal   {taken:.1f} s, {epochs:.2f} epochs, converged: {bool(record['converged'])}")
    print(f"         floors: {to_send:.2f} s to send the values, {to_read:.2f} s to read them there", flush=True)
    del adata
    print(f"svd      {seconds_of(device, partial(svd, values, device, given.factors)):.1f} s", flush=True)
    del values

    counts = simulated(given.count_cells, given.count_genes, given.count_genes // 10, counts=True)
    print(f"values   {given.count_cells:,} x {given.count_genes:,}, {counts.nnz:,} stored", flush=True)
    options = {"n_factors": given.count_factors, "likelihood": "negative_binomial", "tol": 1e-12}
    one, two = (fitted(counts, device, max_epochs=epochs, **options)[0] for epochs in (1, 2))
    print(f"counts   {two - one:.1f} s an epoch; {one:.1f} s with one epoch, its start and its end")


if __name__ == "__main__":
    main()
