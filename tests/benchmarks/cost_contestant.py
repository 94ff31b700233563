"""One contestant of `cost.py` in this process: its seconds and its memory, as a line of JSON.

    python tests/benchmarks/cost_contestant.py NAME DATA.h5ad [--factors 50] [--device cpu] [--variable-genes N]
        [--busy N] [--fitted OUT.h5ad]

X of DATA are raw counts, or log-normalised values. Before the clock starts, genes without a value are left out, counts
are log-normalised for those who read logs, and everyone works on a few simulated cells, so that neither imports nor
compilation are in the figures. Then N endless loops begin, in processes of their own, and run until the clock has
stopped. `--fitted` writes what `fit` and `fit_counts` leave, which `anomalies` and `check` read.
"""

import argparse
import ctypes
import gc
import json
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import numpy as np
import scanpy as sc
import scipy.sparse as sp

import scvi_lfm as lfm

SELECTED = 2000  # genes that `selected_pca` selects
LOOP = """
import os
parent = os.getppid()
print(flush=True)
while os.getppid() == parent:
    for _ in range(1_000_000):
        pass
"""


def pca(adata: ad.AnnData, n_factors: int, device: str) -> None:
    sc.pp.pca(adata, n_comps=n_factors)


def selected_pca(adata: ad.AnnData, n_factors: int, device: str) -> None:
    """What most users run: variable genes are selected, then PCA of these."""
    sc.pp.highly_variable_genes(adata, n_top_genes=min(SELECTED, adata.n_vars))
    sc.pp.pca(adata, n_comps=n_factors, mask_var="highly_variable")


def truncated_svd(adata: ad.AnnData, n_factors: int, device: str) -> None:
    from sklearn.decomposition import TruncatedSVD

    TruncatedSVD(n_factors, algorithm="randomized", n_iter=4, random_state=0).fit_transform(adata.X)


def svd_lowrank(adata: ad.AnnData, n_factors: int, device: str) -> None:
    import torch

    arrays = (torch.from_numpy(part) for part in (adata.X.indptr, adata.X.indices, adata.X.data))
    torch.svd_lowrank(torch.sparse_csr_tensor(*arrays, adata.shape), q=n_factors, niter=2)


def fit(adata: ad.AnnData, n_factors: int, device: str) -> None:
    lfm.tl.fit(adata, n_factors, likelihood="normal", device=device, progress=False)


def fit_counts(adata: ad.AnnData, n_factors: int, device: str) -> None:
    lfm.tl.fit(adata, n_factors, likelihood="negative_binomial", device=device, progress=False)


def anomalies(adata: ad.AnnData, n_factors: int, device: str) -> None:
    lfm.tl.anomalies(adata, device=device)


def check(adata: ad.AnnData, n_factors: int, device: str) -> None:
    lfm.tl.check(adata, device=device)


@dataclass(frozen=True)
class Contestant:
    run: Callable[[ad.AnnData, int, str], None]
    reads: str = "logs"  # or "counts"
    fitted_by: str | None = None  # whose result it starts from


PEERS = {
    "pca": Contestant(pca),
    "selected_pca": Contestant(selected_pca),
    "truncated_svd": Contestant(truncated_svd),
    "svd_lowrank": Contestant(svd_lowrank),
}
OURS = {
    "fit": Contestant(fit),
    "anomalies": Contestant(anomalies, fitted_by="fit"),
    "check": Contestant(check, fitted_by="fit"),
    "fit_counts": Contestant(fit_counts, "counts"),
    "anomalies_counts": Contestant(anomalies, "counts", fitted_by="fit_counts"),
    "check_counts": Contestant(check, "counts", fitted_by="fit_counts"),
}
CONTESTANTS = PEERS | OURS


def are_counts(adata: ad.AnnData) -> bool:
    """Whether all values in X are whole numbers."""
    return bool(np.all(adata.X.data == np.rint(adata.X.data)))


def log_normalise(adata: ad.AnnData) -> None:
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)


def load(path: str, contestant: Contestant, n_variable: int | None) -> ad.AnnData:
    """The data that a contestant reads: counts or logs, of all genes or of variable ones."""
    adata = ad.read_h5ad(path)
    if contestant.fitted_by is not None:
        return adata
    sc.pp.filter_genes(adata, min_cells=1)
    if contestant.reads == "counts" and not are_counts(adata):
        sys.exit(f"{path} holds no counts")
    logs = adata.copy() if contestant.reads == "counts" and n_variable else adata
    if are_counts(logs) and (contestant.reads == "logs" or n_variable):
        log_normalise(logs)
    if n_variable and contestant.run is not selected_pca:
        sc.pp.highly_variable_genes(logs, n_top_genes=n_variable)
        adata = adata[:, logs.var["highly_variable"].to_numpy()].copy()
    adata.X = adata.X.tocsr().astype(np.float32)
    return adata


def warm_up(contestant: Contestant, device: str) -> None:
    small = lfm.datasets.simulate(200, 100, 3, likelihood="poisson", rng=0)
    small.X = sp.csr_matrix(small.X, dtype=np.float32)
    if contestant.reads == "logs":
        log_normalise(small)
    if contestant.fitted_by is not None:
        CONTESTANTS[contestant.fitted_by].run(small, 3, device)
    contestant.run(small, 3, device)


@contextmanager
def busy_loops(n_loops: int) -> Iterator[None]:
    """Loops in processes of their own, which end with the block, or with this process."""
    loops = [subprocess.Popen([sys.executable, "-c", LOOP], stdout=subprocess.PIPE) for _ in range(n_loops)]
    try:
        for loop in loops:
            loop.stdout.readline()  # it runs
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.communicate()


def processor_seconds() -> float:
    """Of all threads of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def status(field: str) -> int:
    """A field of this process's memory status, in bytes (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    return 0


def measure(work: Callable[[], None]) -> dict[str, float]:
    """Seconds of wall and processor, and peak memory beyond what was held before."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed is not held, and would hide what is taken again
    held = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # start the peak anew
    wall, processor = time.perf_counter(), processor_seconds()
    work()
    wall, processor = time.perf_counter() - wall, processor_seconds() - processor
    return {"wall": wall, "processor": processor, "peak": status("VmHWM") - held}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=CONTESTANTS)
    parser.add_argument("data")
    parser.add_argument("--factors", type=int, default=50)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--variable-genes", type=int)
    parser.add_argument("--busy", type=int, default=0)
    parser.add_argument("--fitted")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    contestant = CONTESTANTS[args.name]
    warm_up(contestant, args.device)
    adata = load(args.data, contestant, args.variable_genes)
    shape = {"cells": adata.n_obs, "genes": adata.n_vars, "nonzeros": adata.X.nnz}
    csr = sum(part.nbytes for part in (adata.X.data, adata.X.indices, adata.X.indptr))
    with busy_loops(args.busy):
        measured = measure(lambda: contestant.run(adata, args.factors, args.device))
    if args.fitted:
        adata.write_h5ad(args.fitted)
    print(json.dumps(shape | {"factors": args.factors, "csr": csr} | measured))


if __name__ == "__main__":
    main()
