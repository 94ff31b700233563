"""What a call costs: seconds of wall and processor and peak memory, on a quiet and on a busy machine, beside its peers.

    python tests/benchmarks/cost.py [DATA.h5ad ...] [--contestants pca fit ...] [--repeats 3] [--factors 50]
        [--busy N] [--threads T] [--variable-genes N] [--device cpu]
    python tests/benchmarks/cost.py --grow cells|genes|nonzeros|factors [--points 5] [--contestants pca fit ...]

DATA hold raw counts in X, or log-normalised values, which those who fit counts cannot use; without any, 50,000 x 15,000
raw counts are simulated (a minute). Every contestant runs in a process of its own on the same file, in turn, k times.
Medians are printed, and ratios to the peers, which are medians over rounds:

pca, selected_pca    `sc.pp.pca` (arpack, its default); the same, of 2,000 variable genes, with selecting them
truncated_svd        scikit-learn's TruncatedSVD, randomised, four iterations
svd_lowrank          `torch.svd_lowrank` of the sparse matrix, two iterations
fit, fit_counts      `tl.fit`, Normal, and negative binomial of raw counts
anomalies, check     of such a fit, `anomalies_counts` and `check_counts` of counts; the fit itself is not timed

Beside N endless loops (three a core by default) the fair share of a contestant with t threads on c cores is its quiet
processor seconds x (N + t) / (c t). `--variable-genes` cuts the data to these genes for everyone but `selected_pca`.

`--grow` runs over simulated data of about two decades (of factors, 10 to 200) and prints the slope of the logarithm of
each cost against that of the size, by least squares. A part with a few contestants takes minutes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np

HERE = Path(__file__).parent
PEERS = ["pca", "selected_pca", "truncated_svd", "svd_lowrank"]
FITTED_BY = {
    "anomalies": "fit",
    "check": "fit",
    "anomalies_counts": "fit_counts",
    "check_counts": "fit_counts",
}
OURS = ["fit", "anomalies", "check", "fit_counts", "anomalies_counts", "check_counts"]
MEASURES = ["wall", "processor", "peak"]
N_CORES = len(os.sched_getaffinity(0))
# what grows -> its sizes, and the cells, genes and counts a cell of each; genes / 5 counts leave the density as it is
GROWTH = {
    "cells": (1_000, 100_000, lambda size: (size, 2_000, 400)),
    "genes": (300, 30_000, lambda size: (2_000, size, size / 5)),
    "nonzeros": (20, 20_000, lambda size: (5_000, 4_000, size)),
    "factors": (10, 200, lambda size: (5_000, 2_000, 400)),
}
Figures = dict[str, float]


def run(name: str, path: str, args: argparse.Namespace, *more: str) -> Figures:
    """One contestant in a fresh process."""
    threads = dict.fromkeys((f"{of}_NUM_THREADS" for of in ("OMP", "MKL", "OPENBLAS", "NUMBA")), str(args.threads))
    options = ["--factors", str(args.factors), "--device", args.device, *more]
    if args.variable_genes:
        options += ["--variable-genes", str(args.variable_genes)]
    command = [sys.executable, str(HERE / "cost_contestant.py"), name, path, *options]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=os.environ | threads, check=False)
    if ended.returncode:
        sys.exit(f"{name} failed on {path}")
    figures = json.loads(ended.stdout.splitlines()[-1])
    took = f"{figures['wall']:9.2f} s, {figures['processor']:9.2f} s of processor, {figures['peak'] / 1e6:8.1f} MB"
    print(f"  {name:16s} {took}", file=sys.stderr, flush=True)
    return figures


def rounds(path: str, args: argparse.Namespace, folder: str) -> tuple[dict[str, list[Figures]], ...]:
    """Figures of each contestant, one a round, quiet and busy."""
    files = {}
    for fit in {FITTED_BY[name] for name in args.contestants if name in FITTED_BY}:
        files[fit] = str(Path(folder) / f"{fit}.h5ad")
        run(fit, path, args, "--fitted", files[fit])
    quiet, busy = ({name: [] for name in args.contestants} for _ in range(2))
    for _ in range(args.repeats):
        for seen, n_loops in ((quiet, 0), (busy, args.busy)) if args.busy else ((quiet, 0),):
            print(f"beside {n_loops} loops", file=sys.stderr)
            for name in args.contestants:
                seen[name].append(run(name, files.get(FITTED_BY.get(name), path), args, "--busy", str(n_loops)))
    return quiet, busy


def of(figures: list[Figures], what: str) -> float:
    """The median over rounds."""
    return median(one[what] for one in figures)


def ratio(figures: list[Figures], to: list[Figures], what: str) -> str:
    """The median over rounds of a ratio within the round."""
    if not figures:
        return ""
    return f"{median(one[what] / max(other[what], 1e-6) for one, other in zip(figures, to, strict=True)):.3g}"


def print_row(*cells: object) -> None:
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def print_header(*names: str) -> None:
    print()
    print_row(*names)
    print("|" + "---|" * len(names))


def print_costs(quiet: dict[str, list[Figures]], busy: dict[str, list[Figures]], args: argparse.Namespace) -> None:
    print_header(
        *("", "wall (s)", "processor (s)", "peak (MB)", "peak / CSR"),
        *("busy: wall (s)", "processor (s)", "wall / fair share"),
    )
    for name, figures in quiet.items():
        wall, processor, peak = (of(figures, what) for what in MEASURES)
        loaded = [""] * 3
        if busy[name]:
            fair = processor * max(1, (args.busy + args.threads) / N_CORES) / args.threads
            seconds = of(busy[name], "wall")
            loaded = [f"{seconds:.2f}", f"{of(busy[name], 'processor'):.2f}", f"{seconds / fair:.2f}"]
        in_csr = f"{peak / of(figures, 'csr'):.2f}"
        print_row(f"`{name}`", f"{wall:.2f}", f"{processor:.2f}", f"{peak / 1e6:.0f}", in_csr, *loaded)


def print_ratios(quiet: dict[str, list[Figures]], busy: dict[str, list[Figures]]) -> None:
    peers = [name for name in quiet if name in PEERS]
    if not peers or len(peers) == len(quiet):
        return
    print_header("ratio", "of", "wall", "processor", "peak", "busy: wall", "processor")
    for name in quiet:
        for peer in peers if name in OURS else []:
            ratios = [ratio(quiet[name], quiet[peer], what) for what in MEASURES]
            ratios += [ratio(busy[name], busy[peer], what) for what in MEASURES[:2]]
            print_row(f"`{name}`", f"`{peer}`", *ratios)


def simulate(path: str, n_cells: int, n_genes: int, depth: float) -> None:
    shape = ["--cells", str(n_cells), "--genes", str(n_genes), "--depth", str(depth)]
    command = [sys.executable, str(HERE / "simulated_counts.py"), path, *shape, "--raw"]
    subprocess.run(command, check=True, stdout=sys.stderr)


def grow(args: argparse.Namespace, folder: str) -> None:
    """Costs against size, and their slopes in logarithms."""
    least, most, shape_of = GROWTH[args.grow]
    path = str(Path(folder) / "grown.h5ad")
    seen: dict[str, list[Figures]] = {name: [] for name in args.contestants}
    print_header("", args.grow, "wall (s)", "processor (s)", "peak (MB)")
    for size in np.geomspace(least, most, args.points).round().astype(int):
        if args.grow == "factors":
            args.factors = int(size)
        simulate(path, *shape_of(int(size)))
        quiet, _ = rounds(path, args, folder)
        for name, figures in quiet.items():
            seen[name].append({what: of(figures, what) for what in (args.grow, *MEASURES)})
            *costs, peak = (seen[name][-1][what] for what in MEASURES)
            print_row(
                f"`{name}`", int(seen[name][-1][args.grow]), *(f"{cost:.3f}" for cost in costs), f"{peak / 1e6:.0f}"
            )
    print_header(f"exponent in {args.grow}", *MEASURES)
    for name, points in seen.items():
        sizes = np.log([point[args.grow] for point in points])
        costs = (np.log([max(point[what], 1e-6) for point in points]) for what in MEASURES)
        print_row(f"`{name}`", *(f"{np.polyfit(sizes, cost, 1)[0]:.2f}" for cost in costs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="*")
    parser.add_argument("--contestants", nargs="*", choices=PEERS + OURS, default=[*PEERS, "fit"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--factors", type=int, default=50)
    parser.add_argument("--busy", type=int, default=3 * N_CORES, help="loops beside the busy runs; 0: quiet runs alone")
    parser.add_argument("--threads", type=int, default=N_CORES, help="of each contestant")
    parser.add_argument("--variable-genes", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--grow", choices=GROWTH)
    parser.add_argument("--points", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.grow:
            args.busy = 0
            grow(args, folder)
            return
        if not args.data:
            args.data = [str(Path(folder) / "simulated.h5ad")]
            simulate(args.data[0], 50_000, 15_000, 3000.0)
        for path in args.data:
            quiet, busy = rounds(path, args, folder)
            one = next(iter(quiet.values()))[0]
            shape = f"{one['cells']} x {one['genes']}, {one['nonzeros'] / 1e6:.1f}M non-zeros"
            beside = f", beside {args.busy} loops" if args.busy else ""
            print(f"\n{Path(path).stem}: {shape}, {args.factors} factors, {args.threads} threads{beside}")
            print_costs(quiet, busy, args)
            print_ratios(quiet, busy)


if __name__ == "__main__":
    main()
