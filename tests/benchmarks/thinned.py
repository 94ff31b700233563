"""Which model predicts molecules it has not seen? Binomial thinning of raw counts, scored as a negative binomial.

    python tests/benchmarks/thinned.py COUNTS.h5ad [--contestants lfm linear_scvi scvi glmpca] [--n-factors 20]
        [--seed 0] [--max-epochs E] [--likelihood negative_binomial] [--glmpca-genes 2000] [--glmpca-iterations 100]

Each molecule of the raw counts in X is held out with probability 0.1 and kept in `train` otherwise. Genes without a
count in `train` are dropped, since nobody could learn anything about them. Every contestant is fitted to `train` alone,
with the cell's total count in `train` as its fixed size factor, and gives a rate for every entry and a theta for every
gene. The held-out counts are scored as NB(rate * 0.1 / 0.9, theta): mean log density per entry over all entries, zeros
among them, and over the entries of the variable genes (`--glmpca-genes`), on which glmpca is fitted. The same data and
seed give the same split, so contestants can run one by one, in environments of their own; `held` in the first line
says whether two runs share a split.

linear_scvi and scvi need scvi-tools, glmpca needs glmpca. Three references come with every run:

bias_poisson    rate = size factor x gene's share of all counts, Poisson
bias            the same rate with a theta for each gene, by moments: what a model without factors reaches
saturated       Poisson whose rate is the held-out count itself: an upper bound that nobody reaches
"""

import argparse
import time
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import anndata as ad
import numpy as np
import scipy.sparse as sp
from scipy.special import gammaln

HELD = 0.1
ODDS = HELD / (1 - HELD)
CELLS_PER_BLOCK = 256
MAX_THETA = 1e6  # beyond it a negative binomial is a Poisson
DRAWS = 25  # of a cell's latent variables, over which the rates of scvi-tools are averaged


@dataclass(frozen=True)
class Predictor:
    """What a contestant learnt from `train`: expected counts of a block of cells, theta, and where cells lie."""

    rate: Callable[[slice], np.ndarray]  # (block, m)
    theta: np.ndarray  # (m,)
    note: str
    embedding: np.ndarray | None = None  # (n, r)


def thin(counts: sp.csr_matrix, seed: int) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    """Split every molecule at random into train + held = counts."""
    rng = np.random.default_rng(seed)
    held, train = counts.copy(), counts.copy()
    held.data = rng.binomial(counts.data.astype(np.int64), HELD).astype(np.float32)
    train.data = counts.data - held.data
    held.eliminate_zeros()
    train.eliminate_zeros()
    return train, held


def log_density(held: sp.csr_matrix, predictor: Predictor) -> np.ndarray:
    """Log density of all held-out counts, summed for each gene."""
    theta = np.clip(np.asarray(predictor.theta, dtype=np.float64), 1 / MAX_THETA, MAX_THETA)
    total = np.zeros(held.shape[1])
    for cells in blocks(held.shape[0]):
        mean = np.asarray(predictor.rate(cells), dtype=np.float64) * ODDS
        block = held[cells].tocoo()
        i, j, y = block.row, block.col, block.data.astype(np.float64)
        m, t = mean[i, j], theta[j]
        # NB(y) / NB(0); log1p keeps the Poisson limit exact
        gain = gammaln(y + t) - gammaln(t) - gammaln(y + 1) + y * (np.log(m) - np.log(t) - np.log1p(m / t))
        total += np.bincount(j, gain, minlength=held.shape[1])
        mean /= theta
        total -= theta * np.log1p(mean, out=mean).sum(0)
    return total


def blocks(n_cells: int) -> list[slice]:
    return [slice(start, min(start + CELLS_PER_BLOCK, n_cells)) for start in range(0, n_cells, CELLS_PER_BLOCK)]


def sizes_and_shares(train: sp.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Total count of each cell and share of each gene in all counts."""
    genes = np.asarray(train.sum(0), dtype=np.float64).ravel()
    return np.asarray(train.sum(1), dtype=np.float64).ravel(), genes / genes.sum()


def bias_only(train: sp.csr_matrix) -> Predictor:
    """Rates without factors; theta from sum (y - rate)^2 = sum rate + sum rate^2 / theta."""
    size, share = sizes_and_shares(train)
    squares = np.asarray(train.multiply(train).sum(0), dtype=np.float64).ravel()
    crossed = np.asarray(train.T @ size, dtype=np.float64).ravel() * share
    rate_squares = (size**2).sum() * share**2
    excess = squares - 2 * crossed + rate_squares - size.sum() * share
    theta = rate_squares / np.maximum(excess, rate_squares / MAX_THETA)
    return Predictor(lambda cells: size[cells, None] * share, theta, "theta by moments")


def bias_poisson(train: sp.csr_matrix) -> Predictor:
    return Predictor(bias_only(train).rate, np.full(train.shape[1], MAX_THETA), "")


def saturated(held: sp.csr_matrix) -> np.ndarray:
    """Log density of each gene's held-out counts under a Poisson at those counts: log 1 at zeros."""
    y = held.data.astype(np.float64)
    return np.bincount(held.indices, y * np.log(y) - y - gammaln(y + 1), minlength=held.shape[1])


def variable_genes(train: sp.csr_matrix, n_genes: int) -> np.ndarray:
    """Positions of the genes with the largest excess over Poisson variance, sum (y - rate)^2 / sum rate."""
    size, share = sizes_and_shares(train)
    bias = bias_only(train)
    ratio = 1 + (size**2).sum() / size.sum() * share / bias.theta
    return np.sort(np.argsort(-ratio, kind="stable")[:n_genes])


def fit_lfm(train: sp.csr_matrix, args: argparse.Namespace) -> Predictor:
    import scvi_lfm as lfm

    adata = ad.AnnData(train.copy())
    options = {} if args.max_epochs is None else {"max_epochs": args.max_epochs}
    lfm.tl.fit(adata, n_factors=args.n_factors, likelihood=args.likelihood, rng=args.seed, progress=False, **options)
    theta = adata.var["lfm_theta"].to_numpy() if "lfm_theta" in adata.var else np.full(adata.n_vars, MAX_THETA)
    epochs = int(np.asarray(adata.uns["lfm"]["elbo"]["epoch"])[-1])
    return Predictor(lfm_rate(adata), theta, f"{epochs} epochs", adata.obsm["X_lfm"])


def lfm_rate(adata: ad.AnnData) -> Callable[[slice], np.ndarray]:
    """Expected counts from the stored fields alone: exp(log s + eta + var / 2)."""
    cells = np.column_stack([adata.obs["lfm_a"], adata.obsm["X_lfm"]]).astype(np.float32)
    genes = np.column_stack([adata.var["lfm_b"], adata.varm["lfm"]]).astype(np.float32)
    log_size = np.log(adata.obs["lfm_size_factor"].to_numpy(dtype=np.float64))
    if "lfm_cov" in adata.obsm:
        cell_cov, gene_cov = np.asarray(adata.obsm["lfm_cov"]), np.asarray(adata.varm["lfm_cov"])
        cell_side = [packed_outer(cells) + without_bias(cell_cov), cell_cov]
        gene_side = [doubled(gene_cov), doubled(packed_outer(genes))]
        left, right = np.hstack(cell_side).astype(np.float32), np.hstack(gene_side).astype(np.float32)
    else:
        left, right = np.zeros((len(cells), 1), np.float32), np.zeros((len(genes), 1), np.float32)

    def rate(block: slice) -> np.ndarray:
        eta = cells[block, 1:] @ genes[:, 1:].T + genes[:, 0] + cells[block, :1]
        return np.exp(eta + 0.5 * (left[block] @ right.T) + (adata.uns["lfm"]["mu"] + log_size[block, None]))

    return rate


# var_ij = u'T_j u + v'S_i v + tr(S_AA T_BB), with u = (1, A) and v = (1, B), is the inner product of (uu' + S_AA, S_i)
# with (T_j, vv'), all packed (lower triangles by rows), entries off the diagonal doubled on one side.


def packed_outer(vectors: np.ndarray) -> np.ndarray:
    """Packed outer products of (1, vectors without their first column)."""
    u = vectors.copy()
    u[:, 0] = 1
    row, column = np.tril_indices(u.shape[1])
    return u[:, row] * u[:, column]


def doubled(packed: np.ndarray) -> np.ndarray:
    row, column = np.tril_indices(side_of(packed))
    return packed * np.where(row == column, 1, 2)


def without_bias(packed: np.ndarray) -> np.ndarray:
    """The block of the factors alone."""
    return packed * (np.tril_indices(side_of(packed))[1] > 0)


def side_of(packed: np.ndarray) -> int:
    return int((np.sqrt(8 * packed.shape[1] + 1) - 1) / 2)


def fit_scvi(train: sp.csr_matrix, args: argparse.Namespace, *, linear: bool) -> Predictor:
    import scvi
    import torch

    scvi.settings.seed = args.seed
    adata = ad.AnnData(train.copy())
    kind = scvi.model.LinearSCVI if linear else scvi.model.SCVI
    kind.setup_anndata(adata)
    model = kind(adata, n_latent=args.n_factors, gene_likelihood="nb", use_observed_lib_size=True)
    model.train(early_stopping=True, max_epochs=args.max_epochs, enable_progress_bar=False)
    size, _ = sizes_and_shares(train)

    def rate(cells: slice) -> np.ndarray:
        positions = np.arange(cells.start, cells.stop)
        share = model.get_normalized_expression(indices=positions, n_samples=DRAWS, return_numpy=True)
        return share * size[cells, None]

    epochs = len(model.history["elbo_train"])
    capped = ", capped by --max-epochs" if epochs == args.max_epochs else ""
    theta = torch.exp(model.module.px_r).detach().cpu().numpy()
    return Predictor(rate, theta, f"{epochs} epochs{capped}", model.get_latent_representation())


def fit_glmpca(train: sp.csr_matrix, args: argparse.Namespace) -> Predictor:
    """GLM-PCA of the variable genes; the other genes get the bias-only prediction."""
    from glmpca.glmpca import glmpca

    np.random.seed(args.seed)  # noqa: NPY002  glmpca draws from the global generator
    size, _ = sizes_and_shares(train)
    bias, genes = bias_only(train), variable_genes(train, args.glmpca_genes)
    dense = train[:, genes].T.toarray().astype(np.float64)
    control = {"maxIter": args.glmpca_iterations, "eps": 1e-4}
    fitted = glmpca(dense, args.n_factors, fam="nb", ctl=control, sz=size, penalty=args.glmpca_penalty, verbose=True)
    theta = bias.theta.copy()
    theta[genes] = fitted["glmpca_family"].nb_theta
    intercept, loadings, factors = fitted["coefX"][:, 0], fitted["loadings"], fitted["factors"]

    def rate(cells: slice) -> np.ndarray:
        rates = bias.rate(cells).copy()
        rates[:, genes] = size[cells, None] * np.exp(intercept + factors[cells] @ loadings.T)
        return rates

    iterations = len(fitted["dev"])
    capped = ", capped by --glmpca-iterations" if iterations == args.glmpca_iterations else ""
    scope = f"one theta, fitted on {len(genes)} genes, bias only on the other {train.shape[1] - len(genes)}"
    return Predictor(rate, theta, f"{iterations} iterations{capped}; {scope}", np.asarray(factors))


CONTESTANTS: dict[str, Callable[[sp.csr_matrix, argparse.Namespace], Predictor]] = {
    "lfm": fit_lfm,
    "linear_scvi": lambda train, args: fit_scvi(train, args, linear=True),
    "scvi": lambda train, args: fit_scvi(train, args, linear=False),
    "glmpca": fit_glmpca,
}


def report(name: str, by_gene: np.ndarray, variable: np.ndarray, n_cells: int, note: str) -> None:
    everywhere, there = by_gene.sum() / (n_cells * len(by_gene)), by_gene[variable].sum() / (n_cells * len(variable))
    print(f"{name:14s} {everywhere:12.6f} {there:12.6f}   {note}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--contestants", nargs="*", default=["lfm"], choices=CONTESTANTS)
    parser.add_argument("--n-factors", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-epochs", type=int, help="of lfm and scvi-tools; without it, their own default")
    parser.add_argument("--likelihood", default="negative_binomial", help="of lfm")
    parser.add_argument("--glmpca-genes", type=int, default=2000)
    parser.add_argument("--glmpca-iterations", type=int, default=100)
    parser.add_argument("--glmpca-penalty", type=float, default=1)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")  # the peers' own
    train, held = thin(sp.csr_matrix(ad.read_h5ad(args.data).X, dtype=np.float32), args.seed)
    seen = np.asarray(train.sum(0)).ravel() > 0
    train, held = train[:, seen].tocsr(), held[:, seen].tocsr()
    variable = variable_genes(train, args.glmpca_genes)
    check = zlib.crc32(held.indices.tobytes() + held.data.tobytes())
    print(f"{train.shape[0]} x {train.shape[1]}, {args.n_factors} factors, held {held.sum():.0f} counts ({check:08x})")
    print(f"log density:      all genes {len(variable):6d} variable", flush=True)
    for name, baseline in (("bias_poisson", bias_poisson(train)), ("bias", bias_only(train))):
        report(name, log_density(held, baseline), variable, train.shape[0], baseline.note)
    report("saturated", saturated(held), variable, train.shape[0], "upper bound")
    for name in args.contestants:
        wall, processor = time.perf_counter(), time.process_time()
        predictor = CONTESTANTS[name](train, args)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        note = f"{wall:.0f} s ({processor:.0f} s of processor time), {predictor.note}"
        report(name, log_density(held, predictor), variable, train.shape[0], note)


if __name__ == "__main__":
    main()
