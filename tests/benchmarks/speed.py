"""Time and memory of `tl.fit` against `sc.pp.pca`, and how far the fit is from convergence.

    python tests/benchmarks/speed.py [DATA.h5ad] [--repeats 3] [--factors 50] [--no-gap] [--device cpu]

DATA is what `simulated_counts.py` writes; without it the data are simulated first (a minute). Every contestant runs in
a process of its own on the same file, in turn. The gap compares the default fit with 100 sweeps of coordinate ascent.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent


def _status(field: str) -> int:
    """A field of this process's memory status, in bytes (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    return 0


def contestant(name: str, path: str, n_factors: int, device: str) -> dict[str, float]:
    """Run one contestant in this process; seconds and peak memory beyond what was loaded."""
    import anndata as ad
    import scanpy as sc

    import scvi_lfm as lfm

    adata = ad.read_h5ad(path)
    csr = sum(part.nbytes for part in (adata.X.data, adata.X.indices, adata.X.indptr))
    loaded = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # start the peak anew
    fit = lfm.tl.fit
    start = time.perf_counter()
    if name == "pca":
        sc.pp.pca(adata, n_comps=n_factors)
    elif name == "fit":
        fit(adata, n_factors=n_factors, progress=False, device=device)
    else:
        fit(adata, n_factors=n_factors, progress=False, batch_size=adata.n_obs, max_epochs=100, tol=1e-12)
    result = {"seconds": time.perf_counter() - start, "peak": (_status("VmHWM") - loaded) / csr, "csr": csr}
    if name != "pca":
        elbo = adata.uns["lfm"]["elbo"]
        result |= {"elbo": float(elbo["value"][-1]), "rank0": float(elbo["rank0"]), "epochs": float(elbo["epoch"][-1])}
    return result


def run(name: str, args: argparse.Namespace) -> dict[str, float]:
    """One contestant in a fresh process."""
    command = [sys.executable, __file__, args.data, "--factors", str(args.factors), "--device", args.device]
    output = subprocess.run([*command, "--contestant", name], check=True, capture_output=True, text=True).stdout
    result = json.loads(output.splitlines()[-1])
    print(f"  {name:8s} {result['seconds']:8.2f} s   peak {result['peak']:.2f} x CSR beyond loaded", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--factors", type=int, default=50)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-gap", action="store_true")
    parser.add_argument("--contestant")
    args = parser.parse_args()
    if args.contestant:
        print(json.dumps(contestant(args.contestant, args.data, args.factors, args.device)))
        return
    with tempfile.TemporaryDirectory() as folder:
        if args.data is None:
            args.data = str(Path(folder) / "simulated.h5ad")
            subprocess.run([sys.executable, str(HERE / "simulated_counts.py"), args.data], check=True)
        rounds = [(run("pca", args), run("fit", args)) for _ in range(args.repeats)]
        ratios = [fit["seconds"] / pca["seconds"] for pca, fit in rounds]
        print(f"fit / pca, wall time: median {statistics.median(ratios):.3f}, of {[round(r, 3) for r in ratios]}")
        if not args.no_gap:
            best, fit = run("ascent", args), rounds[0][1]
            gap = (best["elbo"] - fit["elbo"]) / (best["elbo"] - best["rank0"])
            print(f"gap to 100 sweeps of coordinate ascent: {gap:.4f} (fit: {fit['epochs']:g} epoch)")


if __name__ == "__main__":
    main()
