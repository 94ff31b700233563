"""The Pyro engine under the Student-t likelihood: the Normal's program and guides, with degrees of freedom learned."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from ...model.likelihoods import normal, student_t
from ..normal.elbo import elbo
from ..normal.finish import summarise, to_result
from ..normal.natural_gradient import expected_squares
from ..normal.sweep import local_step
from .monte_carlo import last_draws, mean_elbo
from .normal import NormalProgram

if TYPE_CHECKING:
    from torch import Tensor

    from ...data import CellMatrix
    from ...model import Scales
    from ..normal.sweep import Step
    from ..options import FitOptions, FitResult
    from ..trace import Trace

# with fewer degrees of freedom there is no variance; with more the Student t is a Normal
LEAST_DF, MOST_DF, START_DF = 2.1, 100.0, 4.0
# the ELBO without factors is measured in so many entries
ENTRIES = 2**20
STEPS_WITHOUT_FACTORS = 50
# draws of the last ELBO
FEWEST_DRAWS, MOST_DRAWS = 8, 2**8


class StudentProgram(NormalProgram):
    """The Normal's program with its likelihood exchanged; the lower bound is estimated, for it has no closed form."""

    def __init__(self, matrix: CellMatrix, options: FitOptions) -> None:
        super().__init__(matrix, options)
        self._raw_df = nn.Parameter(_raw(START_DF).to(options.device))

    def optimisers(self) -> list[torch.optim.Optimizer]:
        """Optimisers of the Normal, the first of which moves the degrees of freedom too."""
        shared, cells = super().optimisers()
        shared.add_param_group({"params": [self._raw_df]})
        return [shared, cells]

    def _scales(self) -> Scales:
        return replace(super()._scales(), df=_df(self._raw_df))

    def _without_factors(self, base: Step) -> float:
        """ELBO per entry of q under the Normal, with scale and degrees of freedom at their best for it."""
        problem, options, g = self._problem, self._options, base.globals
        batch = self.batches.first()
        block = local_step(problem, g)(batch)
        some = slice(0, max(1, ENTRIES // problem.n_genes))
        variance = g.mu_var + block.cov[0, 0] + g.gene_diagonal[:, 0] * g.gene_basis[0, 0].square()
        mean = g.mu + block.mean[some, :1] + g.gene_mean[:, 0]
        generator = torch.Generator().manual_seed(options.seed)
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=generator.device)
        eta, y = mean + variance.sqrt() * noise.to(mean.device), batch.dense()[some].to(mean)
        sigma = g.precision.rsqrt()
        ratio, raw_df = torch.zeros_like(g.mu), _raw(START_DF).to(g.mu)
        learned = [p.requires_grad_() for p in ((raw_df,) if "sigma" in options.prior_scales else (ratio, raw_df))]
        optimiser = torch.optim.LBFGS(learned, max_iter=STEPS_WITHOUT_FACTORS, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimiser.zero_grad()
            value = -student_t.log_density(y, eta, sigma * ratio.exp(), _df(raw_df)).mean()
            value.backward()
            return value

        optimiser.step(loss)
        squares = expected_squares(g, base.statistics)
        data = problem.n_cells * normal.expected_log_density(squares, g.precision).sum()
        divergence = data - elbo(g, base.statistics, base.cell_cov, problem.n_cells)
        return -float(loss().detach()) - float(divergence) / problem.n_entries

    def finish(self, trace: Trace) -> FitResult:
        """The result; its last ELBO is averaged over many draws."""
        # the scale of the Student t is that for predicting, where a mean square would follow the outliers
        summary = summarise(replace(self._problem, noise="gene"), self._shared.globals(), self._blocks())
        q = summary.posterior
        q = replace(q, noise=replace(q.noise, df=float(_df(self._raw_df).detach())))
        return to_result(replace(summary, posterior=q, elbo=self._mean_elbo()), trace)

    def _mean_elbo(self) -> float:
        n_draws = last_draws(self.batches, FEWEST_DRAWS, MOST_DRAWS)
        return mean_elbo(
            self.batches,
            lambda rows, batch: sum(float(self.loss(rows, batch)) for _ in range(n_draws)) / n_draws,
        )


def _df(raw: Tensor) -> Tensor:
    return LEAST_DF + (MOST_DF - LEAST_DF) * torch.sigmoid(raw)


def _raw(df: float) -> Tensor:
    share = (df - LEAST_DF) / (MOST_DF - LEAST_DF)
    return torch.tensor(math.log(share / (1 - share)), dtype=torch.float32, device="cpu")
