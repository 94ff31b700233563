r"""The lower bound of every smaller rank, from the averages over cells that one fit already holds.

In the gauge of the fit factors are ordered by :math:`\sum_j E[B_{jk}^2]` and nearly orthogonal, so that the leading k
of r are close to a fit of k. What cells say of them is kept, and genes, mu, noise and scales are solved for anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


S = TypeVar("S")

# gene steps for each rank; the genes answer to the noise and the noise to them
GENE_STEPS = 2
# standard errors that a factor must gain, as in the rule of one standard error (Breiman et al. 1984)
ERRORS = 1.0


@dataclass(frozen=True)
class RankCurve:
    """Lower bounds of the leading k factors of a fit, for k = 0, ..., r, and what else is known of them."""

    elbo: list[float]  # per entry
    effective: list[float]
    held_out: list[float] | None = None  # log density per entry held out
    gain_error: list[float] | None = None  # standard error of what each factor adds to an estimate; None: it is exact

    @property
    def best(self) -> int:
        """The number of factors of highest ELBO, without the last ones that add no more than may be the sample's."""
        best = max(range(len(self.elbo)), key=self.elbo.__getitem__)
        if self.gain_error is None:
            return best
        while best > 0 and self.elbo[best] - self.elbo[best - 1] < ERRORS * self.gain_error[best]:
            best -= 1
        return best

    def followed_by(self, longer: RankCurve) -> RankCurve:
        """Curve with, beyond its end, what an earlier fit with more factors had."""
        end = len(self.elbo)

        def joined(mine: list[float] | None, other: list[float] | None) -> list[float] | None:
            return None if mine is None or other is None else mine + other[end:]

        elbo, effective = self.elbo + longer.elbo[end:], self.effective + longer.effective[end:]
        held_out, errors = joined(self.held_out, longer.held_out), joined(self.gain_error, longer.gain_error)
        return RankCurve(elbo, effective, held_out, errors)


def rank_curve(
    state: S,
    n_factors: int,
    effective: list[float],
    fewer: Callable[[S, int], S],
    bound: Callable[[S], float],
    score: Callable[[S], float] | None = None,
) -> RankCurve:
    """The curve of a state: its `bound` per entry, and the log density of held-out entries, factor after factor."""
    values, scores = [], []
    for k in range(n_factors, -1, -1):
        state = fewer(state, k) if k < n_factors else state
        values.append(bound(state))
        scores += [] if score is None else [score(state)]
    return RankCurve(values[::-1], effective, scores[::-1] or None)


def effective_factors(cell_moment: Tensor, cell_cov: Tensor, n_factors: int) -> list[float]:
    """Sums over the leading factors of the share of `mean E[A_k^2]` that is known, `1 - S_kk / mean E[A_k^2]`."""
    known = 1 - (cell_cov.diagonal() / cell_moment.diagonal()[1:])[len(cell_cov) - n_factors :]
    return [0.0, *known.cumsum(0).tolist()]
