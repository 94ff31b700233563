"""Stochastic steps of an epoch, each with an estimate of the ELBO in which the differences between cells cancel."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from ...model.priors import kl_of_mu
from ..learning_rate import learning_rate
from .elbo import kl_genes
from .sweep import local_step, mean_local_elbo, sweep

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from ...data.blocks import Blocks
    from ..course import Place
    from ..state import Problem
    from .state import NormalGlobals
    from .sweep import Step


@dataclass(frozen=True)
class NormalSums:
    """Sums that are kept from step to step of an epoch."""

    start: NormalGlobals  # the genes that the epoch began with
    baseline: tuple[Tensor, ...] = ()  # () each: ELBO per cell of each batch under these
    gains: tuple[Tensor, ...] = ()  # () each: what its step gained


class PairedSteps:
    """Steps of an epoch that began with the genes `start`, after `taken` steps of earlier ones.

    Cells differ more from batch to batch than the ELBO does from step to step, so each batch is also measured under
    the genes that the epoch began with: the estimate is their ELBO over the epoch, plus what this batch gained.
    """

    def __init__(self, problem: Problem, start: NormalGlobals, taken: int) -> None:
        self._problem, self._begun, self._taken = problem, NormalSums(start), taken
        self._at_start, self._start_kl = local_step(problem, start), _global_kl(start) / problem.n_cells

    def __call__(self, at: Place[Step], cells: Blocks) -> Callable[[], Place[Step]]:
        """A step on some cells: what makes the place after it."""
        problem, step, sums = self._problem, at.state, at.sums or self._begun
        reference = mean_local_elbo(self._at_start, cells) - self._start_kl
        before = _global_kl(step.globals) / problem.n_cells
        rate = learning_rate(self._taken + at.n_seen + 1)
        step = sweep(problem, step.globals, cells, step.statistics, rate)
        gains = (*sums.gains, step.local_elbo - before - reference)
        return partial(at.after, step, NormalSums(sums.start, (*sums.baseline, reference), gains))

    def estimates(self, sums: NormalSums) -> list[float]:
        """The ELBO per entry at each step."""
        return ((torch.stack(sums.baseline).mean() + torch.stack(sums.gains)) / self._problem.n_genes).tolist()


def _global_kl(g: NormalGlobals) -> Tensor:
    return kl_genes(g) + kl_of_mu(g.mu, g.mu_var)
