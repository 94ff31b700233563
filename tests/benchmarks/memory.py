"""Peak memory of a fit of counts with many genes and factors.

    python tests/benchmarks/memory.py [--cells 1500] [--genes 30000] [--factors 100] [--batch-size 512] [--epochs 1]

Counts are simulated with ten factors, about 3,000 a cell. The peak is that of the process, less what it held before the
fit; a set is `m (r + 1) (r + 2) / 2` float32 values, a triangle for each gene. Nothing else may run in the process: its
peak is that of its whole life.
"""

import argparse
import resource
import time
import warnings
from pathlib import Path

import numpy as np

import scvi_lfm as lfm

N_TRUE, COUNTS_PER_CELL = 10, 3000
GB = 1e9


def held() -> float:
    """Bytes in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak() -> float:
    """Most bytes ever in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=1500)
    parser.add_argument("--genes", type=int, default=30_000)
    parser.add_argument("--factors", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=1)
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message="The fit did not converge")
    adata = lfm.datasets.simulate(
        args.cells,
        args.genes,
        N_TRUE,
        likelihood="negative_binomial",
        mu=float(np.log(COUNTS_PER_CELL / args.genes)) - 1,
        factor_scales=np.full(N_TRUE, 0.4),
        rng=0,
    )
    before, simulated, begun = held(), peak(), time.perf_counter()
    lfm.tl.fit(
        adata,
        args.factors,
        likelihood="negative_binomial",
        batch_size=args.batch_size,
        max_epochs=args.epochs,
        progress=False,
    )
    seconds, one_set = time.perf_counter() - begun, args.genes * (args.factors + 1) * (args.factors + 2) * 2
    print(f"{args.cells} x {args.genes}, mean {adata.X.mean():.3f}; {args.factors} factors, {args.epochs} epochs")
    print(f"before the fit {before / GB:.2f} GB (peak {simulated / GB:.2f}); the fit took {seconds:.0f} s")
    print(
        f"peak {peak() / GB:.2f} GB, of the fit {(peak() - before) / GB:.2f} GB: "
        f"{(peak() - before) / one_set:.1f} sets of {one_set / GB:.3f} GB"
    )


if __name__ == "__main__":
    main()
