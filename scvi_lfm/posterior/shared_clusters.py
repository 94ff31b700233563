r"""What covariates explain of cells that differ in kind: slopes within clusters.

The likelihood cannot tell a shift of all cells of a batch along the factors from a batch with other kinds of cells. The
shape of the data can: cells of a kind lie together. One mixture of Normals is fitted to what is left of the cells,

.. math:: A_i - C \zeta_i \sim \sum_l f_l \, \mathrm{Normal}(c_l, W)

by expectation maximisation, with clusters that every value of the covariates shares. With responsibilities
:math:`f_{il}`, C and the c_l are those of least squares together: the pooled regression within clusters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

MOST_CELLS = 20_000
MOST_CLUSTERS, CELLS_PER_CLUSTER = 20, 50
ROUNDS, K_MEANS_ROUNDS = 200, 10
# nats per cell that a round must gain
ENOUGH = 1e-5
# share of the total variance that a cluster has at least in each direction
LEAST_SPREAD = 1e-4


def slopes_within_clusters(rows: Tensor, known: Tensor, starts: list[Tensor]) -> Tensor:
    """Slopes C (r+1, p) of rows (a, A) (n, r+1) on covariates (n, p), within clusters of `A - C zeta`.

    Fitted from each of `starts` (r, p); the one whose mixture describes the cells best is taken.
    """
    if len(rows) > MOST_CELLS:
        some = torch.linspace(0, len(rows) - 1, MOST_CELLS, dtype=torch.float32, device=rows.device).long()
        rows, known = rows[some], known[some]
    # clusters are looked for where all directions count by their variance
    A = rows[:, 1:]
    fits = [_fit(A, known, start) for start in starts]
    share, _ = max(fits, key=lambda fit: fit[1])
    return _pooled(rows, known, share)[0]


def _fit(A: Tensor, known: Tensor, slopes: Tensor) -> tuple[Tensor, float]:
    """Responsibilities (n, K) and mean log density by expectation maximisation from some slopes."""
    left = A - known @ slopes.T
    share = _k_means(left, max(1, min(MOST_CLUSTERS, len(A) // CELLS_PER_CLUSTER)))
    floor = LEAST_SPREAD * torch.diag(left.var(0, correction=0))
    before = -torch.inf
    for _ in range(ROUNDS):
        slopes, centres, cov = _pooled(A, known, share)
        log_share = share.mean(0).clamp_min(1e-12).log()
        share, density = _responsibilities(A - known @ slopes.T, centres, cov + floor, log_share)
        if density - before < ENOUGH:
            break
        before = density
    return share, density


def _pooled(rows: Tensor, known: Tensor, share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Slopes within clusters, centres of what is left, and its covariance around them."""
    weight = share.sum(0).clamp_min(1e-12)
    known_centres, row_centres = share.T @ known / weight[:, None], share.T @ rows / weight[:, None]
    within = known.T @ known - (weight[:, None] * known_centres).T @ known_centres
    shared = known.T @ rows - (weight[:, None] * known_centres).T @ row_centres
    # a direction in which no cluster varies says nothing
    slopes = (torch.linalg.pinv(within, hermitian=True, rtol=1e-6) @ shared).T
    left = rows - known @ slopes.T
    centres = row_centres - known_centres @ slopes.T
    cov = (left.T @ left - (weight[:, None] * centres).T @ centres) / len(rows)
    return slopes, centres, (cov + cov.T) / 2


def _responsibilities(left: Tensor, centres: Tensor, cov: Tensor, log_share: Tensor) -> tuple[Tensor, float]:
    """Posterior of the clusters (n, K), and the mean log density, up to a constant."""
    root = torch.linalg.cholesky(cov)
    white = torch.linalg.solve_triangular(root, left.T, upper=False).T
    centres = torch.linalg.solve_triangular(root, centres.T, upper=False).T
    log_joint = log_share - 0.5 * torch.cdist(white, centres).square() - root.diagonal().log().sum()
    density = torch.logsumexp(log_joint, dim=1, keepdim=True)
    return (log_joint - density).exp(), float(density.mean())


def _k_means(rows: Tensor, n_clusters: int) -> Tensor:
    """Clusters as ones and zeros (n, K): k-means from centres that lie far apart."""
    chosen = [rows.square().sum(1).argmin()]
    nearest = (rows - rows[chosen[0]]).square().sum(1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(n_clusters - 1):
        # drawn by squared distance: the farthest cells would be the odd ones
        level = torch.rand((), generator=generator, dtype=rows.dtype, device=generator.device).to(rows) * nearest.sum()
        chosen.append(torch.searchsorted(nearest.cumsum(0), level).clamp_max(len(rows) - 1))
        nearest = torch.minimum(nearest, (rows - rows[chosen[-1]]).square().sum(1))
    centres = rows[torch.stack(chosen)]
    for _ in range(K_MEANS_ROUNDS):
        share = torch.nn.functional.one_hot(torch.cdist(rows, centres).argmin(1), n_clusters).to(rows)
        size = share.sum(0)[:, None]
        centres = torch.where(size > 0, share.T @ rows / size.clamp_min(1), centres)
    return share
