"""The Pyro engine for counts: a covariance for each cell and gene, or whatever guide the user brings."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from pyro.infer import Trace_ELBO

from ...linalg.covariances import Packed
from ...linalg.packed import unpack
from ...model import Gaussian, model
from ...model.likelihoods import COUNTS
from ...model.noise import CountNoise
from ...posterior import CountPosterior, to_stored_gauge
from ..counts.engine import CountEngine
from ..minibatches import Minibatches
from .guides import RowGuide
from .monte_carlo import in_order, last_draws, mean_elbo
from .own_guide import OwnGuide
from .parameters import LearnedScales

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor

    from ...data import Batch, CellMatrix
    from ..counts.engine import State
    from ..options import FitOptions, FitResult
    from ..trace import Trace
    from .guides import RowMoments

# draws of a step, where there are so few entries that they cost next to nothing
ENTRIES_PER_STEP, MOST_DRAWS_PER_STEP = 2**16, 8
# draws of the last ELBO
FEWEST_LAST_DRAWS, MOST_LAST_DRAWS = 16, 2**10
ONE_BY_ONE = 2**8
ENTRIES_AT_A_TIME = 2**18


class Guide(Protocol):
    """A Pyro guide with its parameters."""

    vectorises: bool  # whether several draws can be made in one call

    def program(self, rows: Tensor) -> Callable[..., Any]:
        """The guide of some cells, a function of their values."""

    def dense_parameters(self) -> list[Tensor]:
        """Parameters with a gradient at every step."""

    def sparse_parameters(self) -> list[Tensor]:
        """Parameters by cell, whose gradients are sparse."""

    def moments(self, blocks: Iterable[tuple[Tensor, Tensor]]) -> RowMoments:
        """Moments of all rows; `blocks` hold positions and values of all cells in order."""


class CountProgram:
    """The program with its parameters, which start where the closed-form engine starts."""

    def __init__(self, matrix: CellMatrix, options: FitOptions) -> None:
        self._options, (self._n_cells, self._n_genes) = options, matrix.shape
        sizes = np.zeros(self._n_cells) if options.log_size is None else options.log_size
        self._log_size = torch.as_tensor(sizes, dtype=torch.float64, device=options.device)
        rng = np.random.default_rng(options.seed)
        self.batches = Minibatches(matrix, options.batch_size, options.device, torch.float64, rng)
        start, self.rank0 = CountEngine(matrix, options).start()
        self.scales = LearnedScales(start.globals, learns_theta=COUNTS[options.likelihood].learns_dispersion)
        self.guide = self._guide(start)
        n_draws = ENTRIES_PER_STEP * self.batches.count // (self._n_cells * self._n_genes)
        self._objective = self._elbo_of(min(max(n_draws, 1), MOST_DRAWS_PER_STEP))

    def _guide(self, start: State) -> Guide:
        options, g = self._options, start.globals
        if callable(options.guide):
            rows, batch = next(self.batches.numbered_epoch())
            return OwnGuide(options.guide, batch.dense(), rows, self._n_cells, options.n_factors)
        cells = start.cells.rows(torch.arange(self._n_cells, device=options.device))
        return RowGuide(
            options.guide,
            g.mu.double(),
            (cells.mean.double(), _roots(cells.cov)),
            (g.gene_mean.double(), _roots(g.gene_cov)),
        )

    def _elbo_of(self, n_draws: int) -> Trace_ELBO:
        """The full Monte Carlo estimate: its noise vanishes where q is the posterior."""
        if self.guide.vectorises and n_draws > 1:
            return Trace_ELBO(num_particles=n_draws, max_plate_nesting=2, vectorize_particles=True)
        return Trace_ELBO()

    def optimisers(self) -> list[torch.optim.Optimizer]:
        """Optimisers: one for what cells share, and a sparse one for what they do not."""
        rate, sparse = self._options.learning_rate, self.guide.sparse_parameters()
        dense = [*self.guide.dense_parameters(), *(p for p in self.scales.parameters() if p.requires_grad)]
        optimisers: list[torch.optim.Optimizer] = [torch.optim.Adam(dense, lr=rate)]
        return [*optimisers, torch.optim.SparseAdam(sparse, lr=rate)] if sparse else optimisers

    def loss(self, rows: Tensor, batch: Batch) -> Tensor:
        """The negative ELBO of all cells, estimated from a batch."""
        return self._objective.differentiable_loss(self._model(rows), self.guide.program(rows), batch.dense())

    def _model(self, rows: Tensor) -> Callable[..., Tensor]:
        return partial(
            model,
            scales=self.scales(),
            likelihood=self._options.likelihood,
            log_size=self._log_size[rows],
            n_cells=self._n_cells,
            rows=rows,
        )

    def elbo(self, n_draws: int) -> float:
        """ELBO per entry, the mean of so many draws or a few more."""

        def loss(rows: Tensor, batch: Batch) -> float:
            y = batch.dense()
            at_a_time = min(max(1, ENTRIES_AT_A_TIME // y.numel()), n_draws) if self.guide.vectorises else 1
            objective, rounds = self._elbo_of(at_a_time), -(-n_draws // at_a_time)
            arguments = self._model(rows), self.guide.program(rows), y
            return sum(float(objective.loss(*arguments)) for _ in range(rounds)) / rounds

        return mean_elbo(self.batches, loss)

    def finish(self, trace: Trace) -> FitResult:
        """The result; its last ELBO is that of the guide as it is, averaged over many draws."""
        found = self.guide.moments((rows, batch.dense()) for rows, batch in in_order(self.batches))
        zero = torch.zeros_like(found.gene_mean[0])
        cell_scales, gene_scales = self.scales.of_rows()
        q = CountPosterior(
            mu=found.mu,
            cell_mean=found.cell_mean,
            cell_cov=Packed(found.cell_cov.float()),
            gene_mean=found.gene_mean,
            gene_cov=Packed(found.gene_cov.float()),
            noise=CountNoise(self._options.likelihood, self.scales.dispersion(self._n_genes), self._log_size),
            cell_prior=Gaussian(zero, torch.diag(cell_scales.square())),
            gene_prior=Gaussian(zero, torch.diag(gene_scales.square())),
        )
        q = to_stored_gauge(q).rounded()
        n_draws = last_draws(self.batches, FEWEST_LAST_DRAWS, MOST_LAST_DRAWS)
        last = self.elbo(n_draws if self.guide.vectorises else min(n_draws, ONE_BY_ONE))
        return trace.result(q, last, q.factor_shares)


def _roots(cov: Tensor) -> Tensor:
    return torch.linalg.cholesky(unpack(cov.double()))
