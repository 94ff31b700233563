"""How far the default fit is from convergence: its bound against 100 sweeps of coordinate ascent.

    python tests/benchmarks/gap.py [DATA.h5ad] [--factors 50]

DATA is what `simulated_counts.py` writes; without it the data are simulated first (a minute). The gap is the share of
what factors can gain that the default fit leaves. What the fit costs is measured by `cost.py`.
"""

import argparse
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import anndata as ad

import scvi_lfm as lfm

HERE = Path(__file__).parent


def bound(adata: ad.AnnData, name: str, **options: float) -> tuple[float, float]:
    """The bound that a fit ends at, and that of a fit without factors."""
    start = time.perf_counter()
    lfm.tl.fit(adata, likelihood="normal", progress=False, **options)
    elbo = adata.uns["lfm"]["elbo"]
    value, epochs = float(elbo["value"][-1]), float(elbo["epoch"][-1])
    print(f"{name}: {value:.6f} after {epochs:g} epochs, {time.perf_counter() - start:.1f} s", flush=True)
    return value, float(elbo["rank0"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?")
    parser.add_argument("--factors", type=int, default=50)
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message="The fit did not converge")
    with tempfile.TemporaryDirectory() as folder:
        if args.data is None:
            args.data = str(Path(folder) / "simulated.h5ad")
            subprocess.run([sys.executable, str(HERE / "simulated_counts.py"), args.data], check=True)
        adata = ad.read_h5ad(args.data)
    fitted, rank0 = bound(adata, "default fit", n_factors=args.factors)
    ascent = {"n_factors": args.factors, "batch_size": adata.n_obs, "max_epochs": 100, "tol": 1e-12}
    best, _ = bound(adata, "coordinate ascent", **ascent)
    print(f"gap: {(best - fitted) / (best - rank0):.4f}")


if __name__ == "__main__":
    main()
