"""A fit of values that stay in their file, beside one reading of the same file by slices.

    python tests/benchmarks/out_of_memory.py [--cells 100000] [--genes 20000] [--density 0.05] [--factors 30]
        [--forms gzip.h5ad plain.h5ad zarr] [--likelihood normal] [--folder FOLDER] [--repeats 1] [--keep]

Counts with rates of low rank are written into FOLDER a few cells at a time, sorted by type as files often are. Each
measurement is a process of its own: its peak is the most memory it ever held, imports included. Readings are values
read over values stored. What a machine does not decide are the ratios to the reading by slices, which is anndata's.
Of a billion values, a compressed file takes 2 GB and one that is not 8 GB.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

FORMS = ("gzip.h5ad", "plain.h5ad", "zarr")


def measure(what: str, path: Path, args: argparse.Namespace) -> dict[str, float]:
    """Wall and processor seconds, peak memory in GB, and what was read."""
    from out_of_memory_files import opened, slices_of

    import scvi_lfm as lfm
    from scvi_lfm.data.on_disk import SparseFile

    warnings.simplefilter("ignore", UserWarning)
    n_read, span = 0, SparseFile.span

    def counted(source, start, stop):
        nonlocal n_read
        n_read += int(source.starts[stop] - source.starts[start])
        return span(source, start, stop)

    SparseFile.span = counted
    adata = opened(path)
    opened_with = peak()
    wall, processor = time.perf_counter(), time.process_time()
    found = {}
    if what == "slices":
        found["stored"] = sum(block.nnz for block in slices_of(adata))
    elif args.likelihood == "normal":
        lfm.tl.fit(adata, args.factors, normalize=1e4, progress=False)
    else:
        lfm.tl.fit(adata, args.factors, likelihood=args.likelihood, progress=False)
    found |= {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}
    found |= {"peak": peak(), "opened": opened_with, "read": n_read}
    if what != "slices":
        elbo = adata.uns["lfm"]["elbo"]
        found |= {"epochs": float(elbo["epoch"][-1]), "converged": bool(adata.uns["lfm"]["converged"])}
    return found


def write_from(source: Path, path: Path, args: argparse.Namespace) -> dict[str, float]:
    """Write the values of another file, or simulate them where there is none."""
    from out_of_memory_files import opened, simulated, slices_of, write

    shape = args.cells, args.genes
    begun, n_values = time.perf_counter(), 0
    if source.exists():
        adata = opened(source)
        blocks, n_values = slices_of(adata), adata.X.group["data"].shape[0]
    else:
        blocks = simulated(*shape, args.density)
    return {"stored": write(path, shape, blocks, n_values), "wall": time.perf_counter() - begun}


def peak() -> float:
    """Most memory ever held, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def in_a_process(what: str, path: Path, args: argparse.Namespace) -> dict[str, float]:
    """What :func:`measure` finds in a process of its own, begun by one that is small: a peak is handed down."""
    options = [f"--{name}={getattr(args, name)}" for name in ("cells", "genes", "density", "factors", "likelihood")]
    command = [sys.executable, __file__, "--measure", what, str(path), *options]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(run.stdout.splitlines()[-1])


def report(path: Path, args: argparse.Namespace) -> None:
    """One reading by slices, then the fit."""
    for _ in range(args.repeats):
        slices = in_a_process("slices", path, args)
        fit = in_a_process("fit", path, args)
        n = slices["stored"]
        print(
            f"{path.name}, {n / 1e6:,.0f}M values: by slices {slices['wall']:.1f} s, {slices['processor']:.1f} of "
            f"processor; the fit {fit['wall']:.1f} s ({fit['wall'] / slices['wall']:.2f} times), "
            f"{fit['processor']:.1f} of processor ({fit['processor'] / n * 1e8:.1f} per 1e8 values), "
            f"{fit['read'] / n:.2f} readings, {fit['epochs']:.3f} epochs"
            f"{'' if fit['converged'] else ' (not converged)'}; peak {fit['peak']:.2f} GB, "
            f"{fit['opened']:.2f} when opened",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--genes", type=int, default=20_000)
    parser.add_argument("--density", type=float, default=0.05)
    parser.add_argument("--factors", type=int, default=30)
    parser.add_argument("--likelihood", default="normal")
    parser.add_argument("--forms", nargs="+", default=FORMS, choices=FORMS)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--keep", action="store_true", help="leave the files, and take those that are there")
    parser.add_argument("--measure", nargs=2, metavar=("WHAT", "PATH"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        what, path = args.measure[0], Path(args.measure[1])
        alone = what in {"slices", "fit"}
        print(json.dumps(measure(what, path, args) if alone else write_from(Path(what), path, args)))
        return
    folder = args.folder or Path(tempfile.mkdtemp())
    folder.mkdir(exist_ok=True)
    first = folder / "simulated"
    for form in args.forms:
        path = folder / f"{args.cells}x{args.genes}.{form}"
        if not path.exists():
            written = in_a_process(str(first), path, args)
            print(f"{path.name}: {written['stored'] / 1e6:,.0f}M values in {written['wall']:.0f} s", flush=True)
        first = path if path.suffix == ".h5ad" else first
        report(path, args)
    if not args.keep:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
