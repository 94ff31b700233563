r"""The posterior's means without some of the counts, or without a share of them, and without a refit.

What a count brought to its cell and to its gene is taken out of both, as in leaving one out: at the fixed point of
inference it is one Normal observation of eta among others, with weight w and score g. With :math:`f_{ij}` the
share to be taken out,

.. math::

    (a_i, A_i)^* = (a_i, A_i) - \Big( S_i^{-1} - \sum_j f_{ij} w_{ij} v_j v_j' \Big)^{-1}
        \sum_j f_{ij} g_{ij} v_j

and likewise for genes, with T and u in place of S and v. Covariances stay as they are. In every direction a row keeps
at least a fifth of its information: with less, one Newton step overshoots. A step is shortened
where it would change a row's log rates by more than is trusted: a count that was changed after the fit has not pulled
it. What is then left of a count's own pull on its own prediction is taken out where it is judged.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from .._workers import in_order
from ..data.blocks import slices
from ..linalg.packed import outer, packed_size, unpack
from .leave_one_out import fitted_of_pairs
from .posterior import Moments, extend
from .predictive import mean_of_pairs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from ..linalg.covariances import Covariance
    from .leave_one_out import Fitted
    from .posterior import Posterior
    from .shares_left_out import SharesLeftOut

VALUES_PER_BLOCK = 2**17
MOST_TAKEN = 0.8
# a step may change the log rates of a cell, or of a gene, by so much, root mean square by weight
TRUST_IN_CELLS, TRUST_IN_GENES = 0.5, 1.0
TINY = 1e-12


def without(q: Posterior, y: Tensor, taken: SharesLeftOut) -> tuple[Posterior, SharesLeftOut]:
    """The posterior with the means of cells and genes without the shares `taken` of the counts `y` (k,).

    How much of each count's own pull is left is noted in what is returned with it.
    """
    some = taken.share > 0
    cell, gene, share = taken.cell[some], taken.gene[some], taken.share[some]
    weight, score = torch.empty_like(share), torch.empty_like(share)
    before, pull = torch.empty_like(share), torch.empty_like(share)
    for part, fitted, w, g in _scores(q, y[some], cell, gene):
        weight[part], score[part] = w * share[part], g * share[part]
        before[part], pull[part] = fitted.mean, fitted.mean - fitted.without(w, g, q.likelihood).mean
    u, v = extend(q.cell_mean), extend(q.gene_mean)
    cell_mean = _rows_without(q.cell_mean, q.cell_cov, cell, v, gene, weight, score, TRUST_IN_CELLS)
    gene_mean = _rows_without(q.gene_mean, q.gene_cov, gene, u, cell, weight, score, TRUST_IN_GENES)
    new = replace(q, cell_mean=cell_mean, gene_mean=gene_mean)
    after = mean_of_pairs(new, cell, gene).to(before)
    left = 1 - ((before - after) / pull.clamp_min(TINY)).clamp(0, 1)
    seen = torch.ones_like(taken.share)
    seen[some] = torch.maximum(left, 1 - share)
    return new, replace(taken, seen=seen)


def eta_without(q: Posterior, y: Tensor, taken: SharesLeftOut) -> Moments:
    """Leave-one-out moments of eta (k,) for the counts `y`, in a posterior without the shares `taken` of them."""
    return Moments.joined(
        fitted.without(weight, score * taken.seen[part], q.likelihood)
        for part, fitted, weight, score in _scores(q, y, taken.cell, taken.gene)
    )


def _scores(q: Posterior, y: Tensor, cell: Tensor, gene: Tensor) -> Iterator[tuple[Tensor, Fitted, Tensor, Tensor]]:
    """Moments of eta, Fisher weights and scores of some counts, by blocks of them: positions first."""

    def of_block(part: Tensor) -> tuple[Tensor, Fitted, Tensor, Tensor]:
        fitted = fitted_of_pairs(q, cell[part], gene[part])
        parameters = (parameter.float() for parameter in q.noise.of_pairs(cell[part], gene[part]))
        weight, score = q.likelihood.weight_and_score(y[part], fitted.seen_by(q.likelihood), *parameters)
        return part, fitted, weight, score

    return in_order(of_block, torch.arange(len(y), device=y.device).split(_rows_at_a_time(q.cell_mean)))


def _rows_without(
    mean: Tensor, cov: Covariance, rows: Tensor, x: Tensor, at: Tensor, weight: Tensor, score: Tensor, trust: float
) -> Tensor:
    """Means of rows without observations of `x[at]` (k,), their `weight` and `score`."""
    affected, place, number = rows.unique(return_inverse=True, return_counts=True)
    order = place.argsort(stable=True)
    ends = [0, *number.cumsum(0).tolist()]
    size = _rows_at_a_time(mean)

    def steps(part: slice) -> Tensor:
        """Steps of some affected rows."""
        information = mean.new_zeros(part.stop - part.start, packed_size(mean.shape[1]))
        pull = mean.new_zeros(part.stop - part.start, mean.shape[1])
        for some in order[ends[part.start] : ends[part.stop]].split(size):
            values, of_row = x[at[some]], place[some] - part.start
            information.index_add_(0, of_row, weight[some, None].double() * outer(values))
            pull.index_add_(0, of_row, -score[some, None].double() * values)
        own = unpack(cov.at(affected[part]).packed().double())
        step, first = _step(own, unpack(information), pull)
        change = ((step * pull).sum(1) / first).clamp_min(0).sqrt()
        return step * (trust / change.clamp_min(trust))[:, None]

    moved = [mean[:0], *in_order(steps, slices(len(affected), 0, size=size))]
    return mean.index_add(0, affected, torch.cat(moved))


def _step(cov: Tensor, information: Tensor, pull: Tensor) -> tuple[Tensor, Tensor]:
    """`(S^-1 - H)^-1 pull` of rows (rows, k), coordinates without variance included, and the first value of S^-1.

    No direction loses more than :data:`MOST_TAKEN` of its information.
    """
    factor, first = _root(cov)
    taken = factor.mT @ information @ factor
    left = torch.eye(cov.shape[1], dtype=cov.dtype, device=cov.device) - taken
    # eigenvalues are below their sum, so that most rows need none of them
    much = torch.nonzero(taken.diagonal(dim1=-2, dim2=-1).sum(-1) > MOST_TAKEN).flatten()
    share, basis = torch.linalg.eigh(taken[much])
    left[much] = (basis * (1 - share.clamp(0, MOST_TAKEN))[:, None, :]) @ basis.mT
    step = factor @ torch.linalg.solve(left, factor.mT @ pull[:, :, None])
    # coordinates without variance are known, and rounding must not move them
    return step[..., 0] * (cov.diagonal(dim1=-2, dim2=-1) > 0), first


def _root(cov: Tensor) -> tuple[Tensor, Tensor]:
    """A root of S for each row, zero for coordinates without variance, and the first value of S^-1."""
    none = (cov.diagonal(dim1=-2, dim2=-1) == 0).to(cov.dtype)
    factor, failed = torch.linalg.cholesky_ex(cov + torch.diag_embed(none))
    unit = torch.zeros_like(cov[:, :, :1])
    unit[:, 0] = 1
    first = torch.linalg.solve_triangular(factor, unit, upper=False).square().sum((1, 2))
    factor = factor - torch.diag_embed(none)
    bad = torch.nonzero(failed).flatten()
    if len(bad):  # rounding has left them without a Cholesky factor
        values, vectors = torch.linalg.eigh(cov[bad])
        factor[bad] = vectors * values.clamp_min(0).sqrt()[:, None, :]
        inverse = torch.where(values > TINY * values[:, -1:], values, torch.inf).reciprocal()
        first[bad] = (vectors[:, 0].square() * inverse).sum(1)
    return factor, first


def _rows_at_a_time(mean: Tensor) -> int:
    """Rows whose covariances stay in a processor's cache."""
    return max(1, VALUES_PER_BLOCK // packed_size(mean.shape[1]))
