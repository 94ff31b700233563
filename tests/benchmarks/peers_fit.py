"""One contestant of `peers.py` in this process and environment: what it costs and predicts, as a line of JSON.

    PYTHON tests/benchmarks/peers_fit.py NAME FOLDER [--n-factors 20] [--genes 2000] [--seed 0] [--max-epochs E]

FOLDER holds the split, `train.npz` and `held.npz`; the embedding is written there as NAME.npy. Needs anndata and what
the contestant needs, not this package.
"""

import argparse
import json
import resource
import time
import warnings
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from thinned import (
    CONTESTANTS,
    MAX_THETA,
    Predictor,
    bias_only,
    blocks,
    log_density,
    sizes_and_shares,
    variable_genes,
)

SCALE = 1e4  # counts a cell that log-normalised values are scaled to
LEAST = 0.01  # of the rate by margins alone, that a rate is given at least


def fit_mofa(train: sp.csr_matrix, args: argparse.Namespace) -> Predictor:
    """MOFA of log-normalised variable genes; the other genes get the bias-only prediction.

    MOFA knows values, not counts: its means are turned back into counts, scaled to the total of each gene, and get
    dispersions by moments.
    """
    from mofapy2.run.entry_point import entry_point

    bias, genes = bias_only(train), variable_genes(train, args.glmpca_genes)
    size, _ = sizes_and_shares(train)
    counts = train[:, genes].toarray().astype(np.float64)
    logs = np.log1p(counts * (SCALE / size[:, None]))
    model = entry_point()
    model.set_data_options()
    model.set_data_matrix([[logs]])
    model.set_model_options(factors=args.n_factors)
    model.set_train_options(seed=args.seed, quiet=True)
    model.build()
    model.run()
    nodes = model.model.nodes
    cells, loadings = nodes["Z"].getExpectations()["E"], nodes["W"].getExpectations()[0]["E"]
    margins = np.vstack([bias.rate(block)[:, genes] for block in blocks(len(size))])
    rates = np.maximum(np.expm1(cells @ loadings.T + logs.mean(0)) * (size[:, None] / SCALE), LEAST * margins)
    rates *= counts.sum(0) / rates.sum(0)
    theta, squares = bias.theta.copy(), (rates**2).sum(0)
    theta[genes] = squares / np.maximum(((counts - rates) ** 2 - rates).sum(0), squares / MAX_THETA)

    def rate(block: slice) -> np.ndarray:
        every = bias.rate(block).copy()
        every[:, genes] = rates[block]
        return every

    iterations = len(model.model.getTrainingStats()["number_factors"])
    note = f"{iterations} iterations, {cells.shape[1]} factors; fitted on {len(genes)} genes"
    return Predictor(rate, theta, note, cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=[*CONTESTANTS, "mofa"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--n-factors", type=int, default=20)
    parser.add_argument("--genes", dest="glmpca_genes", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-epochs", type=int)
    parser.set_defaults(likelihood="negative_binomial", glmpca_iterations=1000, glmpca_penalty=1.0)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")  # the peers' own
    train, held = (sp.load_npz(args.folder / f"{part}.npz") for part in ("train", "held"))
    fit = (CONTESTANTS | {"mofa": fit_mofa})[args.name]
    wall, processor = time.perf_counter(), time.process_time()
    predictor = fit(train, args)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    by_gene = log_density(held, predictor)
    variable = variable_genes(train, args.glmpca_genes)
    np.save(args.folder / f"{args.name}.npy", predictor.embedding)
    figures = {
        "wall": wall,
        "processor": processor,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "everywhere": by_gene.mean() / train.shape[0],
        "variable": by_gene[variable].mean() / train.shape[0],
        "note": predictor.note,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
