r"""Leave-one-out moments of eta for observed entries, without a refit.

An entry acts on its own prediction through its cell, with leverage :math:`\ell_c = w_{ij} v_j' S_i v_j`, and through
its gene, with :math:`\ell_g = w_{ij} u_i' T_j u_i`. At the fixed point of inference it is one Normal observation of eta
among others, with weight w and score g; taking it out of either side is exact given the other; both together,

.. math::

    \chi_{ij} &= \frac{v_j' S_i v_j}{1 - \ell_c} + \frac{u_i' T_j u_i}{1 - \ell_g} \\
    \mathrm{mean} &= \bar\eta_{ij} - \chi_{ij} g_{ij}, \qquad
    \mathrm{var}(\eta_{ij}) = \chi_{ij} + \mathrm{tr}(S_{AA,i} T_{BB,j})

For the Normal likelihood :math:`w_j = 1 / \sigma_j^2` and :math:`g_{ij} = w_j (y_{ij} - \bar\eta_{ij})`; for counts
both are taken at the expected rate. S and T_j are those of the fit, under its own noise. Where the leverages are small,
w chi is :math:`\ell / (1 - \ell)` with :math:`\ell = \ell_c + \ell_g`; where an entry has made a factor its own,
that sum passes 1 and chi stays finite.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..model.likelihoods import MAX_LOG_RATE
from .posterior import Moments
from .predictive import BlockPredictor, mean_of_pairs, variances_of_pairs

if TYPE_CHECKING:
    from torch import Tensor

    from ..model.likelihoods import Law, Likelihood
    from .posterior import Posterior
    from .shares_left_out import SharesLeftOut

# both leverages are below 1, but not always by more than float32 can tell
MAX_LEVERAGE = 0.999
# a rate below this cannot be told from none
MIN_LOG_RATE = -50.0


@dataclass(frozen=True)
class Fitted:
    """Mean of eta and the parts of its variance, of any shape; the parts may broadcast."""

    mean: Tensor
    by_cell: Tensor  # v' S v
    by_gene: Tensor  # u' T u
    by_both: Tensor  # tr(S_AA T_BB)

    def seen_by(self, likelihood: Likelihood) -> Tensor:
        """Mean of eta, or the expected rate: what the likelihood sees."""
        if not likelihood.has_rate:
            return self.mean
        spread = self.by_cell + self.by_gene + self.by_both
        return torch.add(self.mean, spread, alpha=0.5).clamp_(max=MAX_LOG_RATE).exp_()

    def without(self, weight: Tensor, score: Tensor, likelihood: Likelihood) -> Moments:
        """Moments of eta without observations of some weights and scores, one for each entry."""
        spread = _without(self.by_gene, weight).add_(_without(self.by_cell, weight))
        mean = torch.addcmul(self.mean, spread, score, value=-1)
        if likelihood.has_rate:
            mean.clamp_(MIN_LOG_RATE, MAX_LOG_RATE)
        return Moments(mean, spread.add_(self.by_both))


def _without(var: Tensor, weight: Tensor) -> Tensor:
    left = (var * weight).clamp_(max=MAX_LEVERAGE).neg_().add_(1)
    return torch.div(var, left, out=left)


class LeaveOneOut:
    """Leave-one-out moments of some cells with all genes; of a posterior, what is kept is that of the genes."""

    def __init__(self, q: Posterior, dtype: torch.dtype = torch.float32) -> None:
        self._dtype = dtype
        self._predictor = BlockPredictor(q.under_noise_of_fit(), dtype)

    def fitted(self, some: Posterior) -> Fitted:
        """Moments of eta of some cells, whose posterior is given, with all values, (cells, m) each."""
        return Fitted(self._predictor.mean(some), *self._predictor.variances(some))

    def eta(self, y: Tensor, some: Posterior, taken: SharesLeftOut | None = None) -> tuple[Moments, Tensor]:
        """Moments of eta for entries `y` (cells, m), each without itself; and what is seen of eta with all of them.

        Means of the posterior have not seen a share of the values in `taken`; covariances have seen all.
        """
        likelihood, fitted = some.likelihood, self.fitted(some)
        seen = fitted.seen_by(likelihood)
        parameters = some.noise.of_cells(slice(None), self._dtype, of_fit=True)
        weight, score = likelihood.weight_and_score(y, seen, *parameters)
        if taken is not None:
            score[taken.cell, taken.gene] *= taken.seen
        return fitted.without(weight, score, likelihood), seen

    def law(self, y: Tensor, some: Posterior) -> Law:
        """Laws of the entries `y` (cells, m), each without itself."""
        return some.law_in_cells(self.eta(y, some)[0])


def fitted_of_pairs(q: Posterior, cells: Tensor, genes: Tensor) -> Fitted:
    """Moments of eta for cell `cells[k]` with gene `genes[k]`, (pairs,) each."""
    parts = variances_of_pairs(q.under_noise_of_fit(), cells, genes, torch.float32)
    return Fitted(mean_of_pairs(q, cells, genes).float(), *parts)
