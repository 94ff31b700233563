"""The Pyro engine under the Normal likelihood: one covariance for all cells, one eigenbasis for all genes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import nn

from ...linalg.covariances import Common
from ...model import guide, mean_field_guide, model
from ...model.priors import initial_scales
from ..minibatches import Minibatches
from ..normal.finish import summarise, to_result
from ..normal.natural_gradient import CellBlock
from ..normal.ranks import elbo_per_entry
from ..normal.start import fit_without_factors, location_and_spread, sums
from ..state import Problem
from .monte_carlo import in_order
from .parameters import SharedParameters

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from ...data import Batch, CellMatrix
    from ...model import Scales
    from ..normal.sweep import Step
    from ..options import FitOptions, FitResult
    from ..trace import Trace


class NormalProgram:
    """The program with its parameters, from means of the data, small random factors and wide noise."""

    def __init__(self, matrix: CellMatrix, options: FitOptions) -> None:
        n_cells, n_genes = matrix.shape
        self._options = options
        self._problem = problem = Problem(n_cells, n_genes, str(options.guide), options.noise)
        rng = np.random.default_rng(options.seed)
        self.batches = Minibatches(matrix, options.batch_size, options.device, options.dtype, rng)
        self.rank0 = self._without_factors(fit_without_factors(problem, self.batches.start, options.prior_scales))
        self._cells, self._shared = _start(problem, self.batches.first(), options)
        self._guide = guide if options.guide == "row_block" else mean_field_guide
        self._objective = TraceMeanField_ELBO()

    def _without_factors(self, base: Step) -> float:
        """ELBO per entry of mu + a_i + b_j alone."""
        return elbo_per_entry(self._problem, base)

    def optimisers(self) -> list[torch.optim.Optimizer]:
        """Optimisers: one for what cells share, and a sparse one for their means."""
        rate = self._options.learning_rate
        return [
            torch.optim.Adam([p for p in self._shared.parameters() if p.requires_grad], lr=rate),
            torch.optim.SparseAdam(self._cells.parameters(), lr=rate),
        ]

    def loss(self, rows: Tensor, batch: Batch) -> Tensor:
        """The negative ELBO of all cells, estimated from a batch by one draw."""
        options, n_cells = self._options, self._problem.n_cells
        return self._objective.differentiable_loss(
            partial(model, scales=self._scales(), likelihood=options.likelihood, n_cells=n_cells, rows=rows),
            partial(self._guide, q=self._shared.guide(self._cells(rows)), n_cells=n_cells, rows=rows),
            batch.dense(),
        )

    def _scales(self) -> Scales:
        """Scales of the program."""
        return self._shared.scales()

    def finish(self, trace: Trace) -> FitResult:
        """The result; its last ELBO is the exact one."""
        return to_result(summarise(self._problem, self._shared.globals(), self._blocks()), trace)

    def _blocks(self) -> Iterator[tuple[Batch, CellBlock]]:
        cov = self._shared.cell_cov()
        for rows, batch in in_order(self.batches):
            mean = self._cells.weight.detach()[rows].double()
            yield batch, CellBlock(mean, Common(cov, len(mean)), cov.new_zeros(()))


def _start(problem: Problem, first: Batch, options: FitOptions) -> tuple[nn.Embedding, SharedParameters]:
    """Means of (a, A) of every cell, of which those of a batch alone get gradients, and what cells share."""
    ones = torch.ones(first.n_cells, 1, dtype=torch.float32, device=options.device)
    gene_means = (first.times_cells(ones)[:, 0] / first.n_cells).float()
    mean, spread = location_and_spread([sums(first)])
    mu, spread = mean.float(), spread.float()
    generator = torch.Generator().manual_seed(options.seed)
    size = options.n_factors + 1
    cell_loc, gene_loc = (
        0.1 * torch.randn(rows, size, generator=generator, dtype=torch.float32, device=generator.device)
        for rows in (problem.n_cells, problem.n_genes)
    )
    gene_loc = torch.cat([(gene_means - mu).cpu()[:, None], gene_loc[:, 1:]], dim=1)
    given = options.prior_scales
    sigma = torch.as_tensor(given.get("sigma", spread), dtype=spread.dtype, device=spread.device)
    sigma = sigma.expand(problem.n_genes if options.noise == "gene" else 1)
    scales = initial_scales(options.n_factors, given, spread.double())
    shared = SharedParameters(gene_loc.to(options.device), mu, sigma, scales, problem.family)
    return nn.Embedding.from_pretrained(cell_loc.to(options.device), freeze=False, sparse=True), shared
