"""From which density on a GPU is faster with blocks in half precision, and what compiled kernels save of an entry.

    python tests/benchmarks/gpu_settings.py [--device cuda] [--cells 32768] [--genes 20000] [--factors 30]
    python tests/benchmarks/gpu_settings.py --device cpu --cells 500 --genes 400 --factors 10

The first table has, for each density, the seconds of the two products of a step with a compressed block of cells, in
single precision, with those of the same block made dense in half precision, each with all that is made of the block
before; `settings.half_density` is best set to the least density at which the second is the faster one. Then the seconds
for an entry of what counts take of rates, weights and scores (`settings.compile`): by torch's own kernels, by those
that `torch.compile` makes, and the time that making them took. On the CPU, which uses neither, nothing is saved.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import scipy.sparse as sp
import torch

from scvi_lfm._compile import compiled
from scvi_lfm.data import Scaled
from scvi_lfm.data.batch import Batch
from scvi_lfm.inference.counts.cell_step import working_responses
from scvi_lfm.model.likelihoods import LIKELIHOODS

DENSITIES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8)
ROUNDS = 3
ENTRIES = 2**22


def seconds(device: torch.device, function: Callable[[], object]) -> float:
    """Least wall time of some calls, the device's part in it."""
    found = []
    for _ in range(ROUNDS + 1):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - start)
    return min(found[1:])


def products(device: torch.device, n_cells: int, n_genes: int, n_factors: int) -> None:
    """The table of densities."""
    rng = np.random.default_rng(0)
    of_genes = Scaled(torch.from_numpy(rng.normal(size=(n_genes, n_factors + 2))).to(device))
    of_cells = torch.from_numpy(rng.normal(size=(n_cells, n_factors + 2))).to(device)
    print("| density | compressed, single (s) | dense, half (s) | ratio |\n|---|---|---|---|")
    for density in DENSITIES:
        stored = round(density * n_genes)
        indices = np.concatenate([np.sort(rng.permutation(n_genes)[:stored]) for _ in range(n_cells)])
        parts = rng.gamma(2.0, size=indices.size).astype(np.float32), indices.astype(np.int32)
        values = sp.csr_array((*parts, stored * np.arange(n_cells + 1)), shape=(n_cells, n_genes))

        def step(block: Batch) -> None:
            block.times_genes(of_genes)
            block.times_cells(of_cells)
            _ = block.square_sums

        single, half = (
            seconds(device, lambda values=values, half=half: step(Batch(values, device, half=half)))
            for half in (False, True)
        )
        print(f"| {density} | {single:.4f} | {half:.4f} | {single / half:.2f} |", flush=True)


def entries(device: torch.device) -> None:
    """What an entry costs, compiled and not."""
    rng = np.random.default_rng(0)
    shape = 2**11, ENTRIES // 2**11
    y, linear, dispersion = rng.poisson(1.0, size=shape), rng.normal(size=shape), rng.gamma(1.0, size=shape[1])
    parts = [torch.from_numpy(part.astype(np.float32)).to(device) for part in (y, linear, dispersion)]

    def run(function: Callable[..., object]) -> None:
        y, linear, dispersion = parts
        function(LIKELIHOODS["negative_binomial"], y, linear.clone(), linear.clone(), None, (dispersion,))

    kernels = compiled(working_responses)
    start = time.perf_counter()
    run(kernels)
    made = time.perf_counter() - start
    own, fused = (
        seconds(device, lambda function=function: run(function)) / ENTRIES * 1e9
        for function in (working_responses, kernels)
    )
    print(f"an entry: {own:.3f} ns, compiled {fused:.3f} ns; compiling took {made:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for name, size in {"cells": 2**15, "genes": 20_000, "factors": 30}.items():
        parser.add_argument(f"--{name}", type=int, default=size)
    given = parser.parse_args()
    device = torch.device(given.device)
    products(device, given.cells, given.genes, given.factors)
    entries(device)


if __name__ == "__main__":
    main()
