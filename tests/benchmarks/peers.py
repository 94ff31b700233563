"""LinearSCVI, GLM-PCA and MOFA beside `tl.fit`: time to their own stop, held-out molecules, neighbours of one type.

    python tests/benchmarks/peers.py COUNTS.h5ad ... --python linear_scvi=PATH --python glmpca=PATH --python mofa=PATH
        [--contestants lfm linear_scvi glmpca mofa] [--groupby facs_celltype] [--n-factors 20] [--genes 2000] [--seed 0]

Each contestant runs in a process of its own, with the interpreter that PATH names. An environment for each is made by

    python -m venv scvi   && scvi/bin/pip install scvi-tools anndata              # --python linear_scvi=scvi/bin/python
    python -m venv glmpca && glmpca/bin/pip install glmpca statsmodels anndata    # --python glmpca=glmpca/bin/python
    python -m venv mofa   && mofa/bin/pip install mofapy2 anndata                 # --python mofa=mofa/bin/python

and a contestant whose environment is not named, or lacks it, is left out with a line that says so. A tenth of the
molecules is held out and scored as in `thinned.py`. Everyone stops by its own default rule: LinearSCVI by early
stopping within its default number of epochs, GLM-PCA and MOFA by theirs within 1,000 iterations. The last two hold
dense data and are fitted to the variable genes (`--genes`), with the margins alone for the others. Accuracy is that of
`embedding.py`, of embeddings of what is left of the data, where they have a column `--groupby`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import anndata as ad
import numpy as np
import scipy.sparse as sp
from embedding import accuracy
from thinned import bias_only, log_density, thin, variable_genes

HERE = Path(__file__).parent
MODULES = {"lfm": "scvi_lfm", "linear_scvi": "scvi", "glmpca": "glmpca.glmpca", "mofa": "mofapy2"}
PACKAGES = {"linear_scvi": "scvi-tools", "glmpca": "glmpca statsmodels", "mofa": "mofapy2"}


def environment(entry: str) -> tuple[str, str]:
    """NAME=PATH of the command line."""
    name, _, path = entry.partition("=")
    if name not in PACKAGES or not path:
        msg = f"expected NAME=PATH with NAME among {', '.join(PACKAGES)}"
        raise argparse.ArgumentTypeError(msg)
    return name, path


def missing(name: str, pythons: dict[str, str]) -> str | None:
    """Why a contestant cannot run, or None."""
    how = f"pip install {PACKAGES.get(name)} anndata"
    if name not in pythons:
        return f"no environment (--python {name}=PATH, made by {how})"
    tried = subprocess.run([pythons[name], "-c", f"import anndata, {MODULES[name]}"], capture_output=True, text=True)
    if tried.returncode:
        return f"{pythons[name]} lacks it ({how}): {tried.stderr.strip().splitlines()[-1]}"
    return None


def run(name: str, folder: str, python: str, args: argparse.Namespace) -> dict:
    """One contestant in a process and an environment of its own."""
    threads = dict.fromkeys((f"{of}_NUM_THREADS" for of in ("OMP", "MKL", "OPENBLAS", "NUMBA")), str(args.threads))
    options = ["--n-factors", str(args.n_factors), "--genes", str(args.genes), "--seed", str(args.seed)]
    if args.max_epochs:
        options += ["--max-epochs", str(args.max_epochs)]
    command = [python, str(HERE / "peers_fit.py"), name, folder, *options]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=os.environ | threads)
    return json.loads(ended.stdout.splitlines()[-1]) if ended.returncode == 0 else {}


def compare(path: str, pythons: dict[str, str], args: argparse.Namespace) -> None:
    adata = ad.read_h5ad(path)
    labels = adata.obs[args.groupby].astype(str).to_numpy() if args.groupby in adata.obs else None
    train, held = thin(sp.csr_matrix(adata.X, dtype=np.float32), args.seed)
    seen = np.asarray(train.sum(0)).ravel() > 0
    train, held = train[:, seen].tocsr(), held[:, seen].tocsr()
    print(
        f"\n{Path(path).stem}: {train.shape[0]} x {train.shape[1]}, {args.n_factors} factors, {args.threads} threads\n"
    )
    print("| | wall (s) | processor (s) | peak (MB) | log density | of variable genes | accuracy | |")
    print("|---|---|---|---|---|---|---|---|")
    margins = log_density(held, bias_only(train)) / train.shape[0]
    there = margins[variable_genes(train, args.genes)].mean()
    print(f"| margins alone | | | | {margins.mean():.5f} | {there:.5f} | | |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        sp.save_npz(Path(folder) / "train.npz", train)
        sp.save_npz(Path(folder) / "held.npz", held)
        for name in args.contestants:
            why = missing(name, pythons)
            figures = {} if why else run(name, folder, pythons[name], args)
            if not figures:
                print(f"| `{name}` | | | | | | | {why or 'failed'} |", flush=True)
                continue
            score = "" if labels is None else f"{accuracy(np.load(Path(folder) / f'{name}.npy'), labels):.4f}"
            cost = f"{figures['wall']:.0f} | {figures['processor']:.0f} | {figures['peak'] / 1e6:.0f}"
            density = f"{figures['everywhere']:.5f} | {figures['variable']:.5f}"
            print(f"| `{name}` | {cost} | {density} | {score} | {figures['note']} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="+")
    parser.add_argument("--contestants", nargs="*", choices=MODULES, default=list(MODULES))
    parser.add_argument("--python", type=environment, action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--groupby", default="facs_celltype")
    parser.add_argument("--n-factors", type=int, default=20)
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--max-epochs", type=int, help="of lfm and LinearSCVI, for a trial; without it, their own default"
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    for path in args.data:
        compare(path, {"lfm": sys.executable} | dict(args.python), args)


if __name__ == "__main__":
    main()
