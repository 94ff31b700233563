"""Workers of a cluster killed at random moments of a fit, which is to end with the bits of one that nothing broke.

    python tests/benchmarks/workers_killed.py [--kills 20] [--likelihood normal negative_binomial] [--workers 2]
        [--cells 4000] [--genes 300] [--seed 0]

A worker is a process of a `LocalCluster`, whose nanny starts another one in its place. Half of the fits have their
values persisted, so that the worker takes with it what others need. Ends with status 1 if a fit failed or differs.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import threading
import time

import anndata as ad
import dask
import dask.array as da
import distributed
import numpy as np
import scipy.sparse as sp

import scvi_lfm as lfm
from scvi_lfm.data import cluster, gate

# a worker that is slow on a busy machine is not dead
PATIENCE = {
    "distributed.comm.timeouts.connect": "300s",
    "distributed.comm.timeouts.tcp": "300s",
    "distributed.scheduler.worker-ttl": None,
    "distributed.deploy.lost-worker-timeout": "300s",
}
FITS = {
    "normal": {"normalize": 1e4, "batch_size": 1000},
    "negative_binomial": {"batch_size": 512},
}
CHUNKS = 20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--likelihood", nargs="+", choices=list(FITS), default=list(FITS))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--cells", type=int, default=4000)
    parser.add_argument("--genes", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    dask.config.set(PATIENCE)
    # so few values would be read into memory, and worked on without a cluster
    gate.MOST_BYTES_READ_IN, cluster.LEAST_CELLS = -1, args.cells // CHUNKS
    counts = lfm.datasets.simulate(args.cells, args.genes, 4, likelihood="negative_binomial", rng=args.seed)
    values = sp.csr_array(counts.X, dtype=np.float32)
    faults = 0
    print("| likelihood | kills | before the end | same bits | seconds of a fit unbroken | with a kill |")
    print("|---|---|---|---|---|---|", flush=True)
    for likelihood in args.likelihood:
        faults += trials(values, likelihood, args.kills, args.workers, random.Random(args.seed))
    return 1 if faults else 0


def trials(values: sp.csr_array, likelihood: str, kills: int, n_workers: int, rng: random.Random) -> int:
    """Print a row, and return the number of fits that failed or differ."""
    options = {"n_workers": n_workers, "threads_per_worker": 1, "dashboard_address": ":0"}
    expected, whole, done, in_time, same = None, 0.0, 0, [], 0
    while done < kills:
        with distributed.LocalCluster(**options) as workers, distributed.Client(workers) as client:
            fit(client, values, likelihood, persisted=True)  # workers import what they need
            if expected is None:
                expected, whole = fit(client, values, likelihood, persisted=True)
            while done < kills and all_there(client, n_workers):
                done += 1
                moment = rng.uniform(0, whole)
                begun = time.perf_counter()
                timer = threading.Timer(moment, kill, (workers, rng))
                timer.start()
                try:
                    found, seconds = fit(client, values, likelihood, persisted=done % 2 == 0)
                except Exception as error:  # noqa: BLE001 - whatever it is, it is what the trial shows
                    print(f"{likelihood}, kill {done} after {moment:.2f} s: {error!r}", flush=True)
                    continue
                finally:
                    before_the_end = time.perf_counter() - begun > moment
                    timer.join()
                differ = [name for name in expected if not np.array_equal(found[name], expected[name], equal_nan=True)]
                if differ:
                    print(f"{likelihood}, kill {done} after {moment:.2f} s: {', '.join(differ)} differ", flush=True)
                same += not differ
                in_time += [seconds] if before_the_end else []
    row = f"{kills} | {len(in_time)} | {same} | {whole:.1f} | {np.median(in_time):.1f}"
    print(f"| {likelihood} | {row} |", flush=True)
    return kills - same


def all_there(client: distributed.Client, n_workers: int) -> bool:
    """Whether all workers came back."""
    try:
        client.wait_for_workers(n_workers, timeout=300)
    except TimeoutError:
        return False
    return True


def kill(workers: distributed.LocalCluster, rng: random.Random) -> None:
    """Kill the process of one of the workers."""
    at_work = workers.scheduler.workers.keys()
    os.kill(
        rng.choice(sorted(one.pid for one in workers.workers.values() if one.worker_address in at_work)), signal.SIGKILL
    )


def fit(
    client: distributed.Client, values: sp.csr_array, likelihood: str, *, persisted: bool
) -> tuple[dict[str, np.ndarray], float]:
    """Everything that a fit writes, and the seconds that it took."""
    array = da.from_array(values, chunks=(-(-values.shape[0] // CHUNKS), -1), asarray=False)
    adata = ad.AnnData(client.persist(array) if persisted else array)
    begun = time.perf_counter()
    lfm.tl.fit(adata, 4, likelihood=likelihood, max_epochs=6, progress=False, **FITS[likelihood])
    seconds = time.perf_counter() - begun
    found = {f"obsm {key}": np.asarray(one) for key, one in adata.obsm.items()}
    found |= {f"varm {key}": np.asarray(one) for key, one in adata.varm.items()}
    found |= {f"obs {key}": adata.obs[key].to_numpy() for key in adata.obs}
    found |= {f"var {key}": adata.var[key].to_numpy() for key in adata.var}
    return found | {"elbo": np.asarray(adata.uns["lfm"]["elbo"]["value"])}, seconds


if __name__ == "__main__":
    sys.exit(main())
