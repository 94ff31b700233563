"""How much a richer approximation would gain: the ELBO of each guide, and of the closed form's q, on the same counts.

    python tests/benchmarks/guides.py [--likelihoods poisson negative_binomial] [--cells 100] [--genes 60] [--seed 3]

The data are simulated from the model, about one molecule an entry. Every q is scored by the Pyro program with the same
estimator: the full Monte Carlo ELBO, 4,000 draws. Dispersions are held at the closed form's, so that only q differs;
prior scales are each fit's own.

gain        nats of the whole data set over the fit without factors
to closed   what the ELBO lies above the closed form's row_block, as a share of that one's gain
eta         root mean square distance of posterior means of eta from the closed form's, in its standard deviations
sd ratio    standard deviations of eta over the closed form's: median, and the middle 90 %
"""

import argparse
import time
from dataclasses import replace

import numpy as np
import torch

import scvi_lfm as lfm
from scvi_lfm._context import pyro_sandbox
from scvi_lfm.data import CellMatrix
from scvi_lfm.inference import FitOptions, fit_natural_gradient
from scvi_lfm.inference.pyro.counts import CountProgram
from scvi_lfm.inference.pyro.guides import PROGRAMS, RowGuide
from scvi_lfm.inference.pyro.loop import climb
from scvi_lfm.linalg.packed import unpack
from scvi_lfm.posterior import CountPosterior
from scvi_lfm.posterior.gauge import balance, shift_constants, translate_cells, translate_genes
from scvi_lfm.posterior.posterior import extend

CPU = torch.device("cpu")
ROUNDS, DRAWS = 8, 500
FACTOR_SCALES = (0.8, 0.6, 0.5)


def score(program: CountProgram, n_entries: int) -> tuple[float, float]:
    """ELBO in nats, with its standard error."""
    values = n_entries * np.array([program.elbo(DRAWS) for _ in range(ROUNDS)])
    return values.mean(), values.std(ddof=1) / ROUNDS**0.5


def in_model_gauge(q: CountPosterior) -> CountPosterior:
    """The same posterior in the gauge in which the priors are the program's."""
    cov = q.cell_prior.cov
    q = translate_genes(-torch.linalg.solve(cov[1:, 1:], cov[1:, 0])).posterior(q)
    cov = q.gene_prior.cov
    q = translate_cells(-torch.linalg.solve(cov[1:, 1:], cov[1:, 0])).posterior(q)
    q = balance(q.cell_prior.cov[1:, 1:], q.gene_prior.cov[1:, 1:]).posterior(q)
    return shift_constants(q.cell_prior.mean[0], q.gene_prior.mean[0], q.n_factors).posterior(q)


def as_program(matrix: CellMatrix, options: FitOptions, q: CountPosterior) -> CountProgram:
    """The program whose guide is a posterior of the closed form."""
    q = in_model_gauge(q)
    rows = [
        (mean, torch.linalg.cholesky(unpack(cov.packed().double())))
        for mean, cov in ((q.cell_mean, q.cell_cov), (q.gene_mean, q.gene_cov))
    ]
    with pyro_sandbox(0, CPU):
        program = CountProgram(matrix, replace(options, n_factors=q.n_factors))
        program.guide = RowGuide("row_block", torch.tensor(q.mu, dtype=torch.float64), *rows)
        program.guide.log_mu_scale.data.fill_(np.log(0.01))
        hold_dispersion(program, q)
        a, b = (prior.cov.diagonal().log() / 2 for prior in (q.cell_prior, q.gene_prior))
        program.scales.a.data, program.scales.A.data = a[0], a[1:]
        program.scales.b.data, program.scales.B.data = b[0], b[1:]
    return program


def hold_dispersion(program: CountProgram, q: CountPosterior) -> None:
    """Take the dispersions of a posterior, and learn them no more."""
    if q.noise.likelihood == "negative_binomial":
        program.scales.theta.data = -q.noise.dispersion.log()
        program.scales.theta.requires_grad_(False)


def moments_of_eta(q: CountPosterior) -> tuple[torch.Tensor, torch.Tensor]:
    """Posterior mean and standard deviation of every eta."""
    u, v = extend(q.cell_mean), extend(q.gene_mean)
    S, T = unpack(q.cell_cov.packed().double()), unpack(q.gene_cov.packed().double())
    var = torch.einsum("ik,jkl,il->ij", u, T, u) + torch.einsum("jk,ikl,jl->ij", v, S, v)
    var += torch.einsum("ikl,jkl->ij", S[:, 1:, 1:], T[:, 1:, 1:])
    return q.mu + q.gene_mean[:, 0] + q.cell_mean @ v.T, var.sqrt()


class Table:
    """Lines of one data set, against the first."""

    def __init__(self, reference: CountPosterior, rank0: float) -> None:
        self._mean, self._sd = moments_of_eta(reference)
        self._rank0, self._first = rank0, None
        print("\n| q | ELBO | gain | to closed | eta | sd ratio | CPU s |")
        print("|---|---|---|---|---|---|---|")

    def add(self, name: str, q: CountPosterior, value: float, error: float, seconds: float) -> None:
        """Print a line."""
        self._first = value if self._first is None else self._first
        share = 100 * (value - self._first) / (self._first - self._rank0)
        mean, sd = moments_of_eta(q)
        rms = float(((mean - self._mean) / self._sd).square().mean().sqrt())
        low, median, high = (float((sd / self._sd).quantile(level)) for level in (0.05, 0.5, 0.95))
        print(
            f"| {name} | {value:.1f} +- {error:.1f} | {value - self._rank0:.0f} | {share:+.2f} % | {rms:.3f} "
            f"| {median:.3f} ({low:.3f} to {high:.3f}) | {seconds:.1f} |",
            flush=True,
        )


def compare(likelihood: str, args: argparse.Namespace) -> None:
    """Print the table of one data set."""
    matrix, options = draw(likelihood, args)
    n_entries = matrix.shape[0] * matrix.shape[1]
    print(f"\n{likelihood}, {matrix.shape[0]} x {matrix.shape[1]}, mean {matrix.stored().mean():.2f}")
    closed, seconds = {}, {}
    for family in ("row_block", "mean_field"):
        begun = time.process_time()
        closed[family] = fit_natural_gradient(matrix, replace(options, family=family, tol=1e-6, max_epochs=300))
        seconds[family] = time.process_time() - begun
    reference = closed["row_block"].posterior
    table = Table(reference, closed["row_block"].elbo_rank0 * n_entries)
    for family, result in closed.items():
        program = as_program(matrix, options, result.posterior)
        with pyro_sandbox(1, CPU):
            hold_dispersion(program, reference)
            table.add(f"closed form, {family}", result.posterior, *score(program, n_entries), seconds[family])
    for guide in PROGRAMS:
        begun = time.process_time()
        with pyro_sandbox(0, CPU):
            program = CountProgram(matrix, replace(options, guide=guide))
            hold_dispersion(program, reference)
            q = program.finish(climb(program, n_entries, options)).posterior
        spent = time.process_time() - begun
        with pyro_sandbox(1, CPU):
            table.add(f"Pyro, {guide}", q, *score(program, n_entries), spent)


def draw(likelihood: str, args: argparse.Namespace) -> tuple[CellMatrix, FitOptions]:
    """Counts from the model, and how to fit them."""
    adata = lfm.datasets.simulate(
        args.cells,
        args.genes,
        len(FACTOR_SCALES),
        likelihood=likelihood,
        mu=-1.0,
        cell_scale=0.3,
        factor_scales=list(FACTOR_SCALES),
        depth_spread=0.4,
        rng=args.seed,
    )
    options = FitOptions(
        n_factors=len(FACTOR_SCALES),
        likelihood=likelihood,
        noise="shared",
        family="row_block",
        prior_scales={},
        batch_size=adata.n_obs,
        max_epochs=20_000,
        tol=1e-3,
        device=CPU,
        dtype=torch.float32,
        seed=0,
        progress=False,
        log_size=np.log(adata.obs["size_factor"].to_numpy()),
    )
    return CellMatrix.of(adata.X.toarray()), options


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--likelihoods", nargs="+", default=["poisson", "negative_binomial"])
    parser.add_argument("--cells", type=int, default=100)
    parser.add_argument("--genes", type=int, default=60)
    parser.add_argument("--seed", type=int, default=3)
    args = parser.parse_args()
    for likelihood in args.likelihoods:
        compare(likelihood, args)


if __name__ == "__main__":
    main()
