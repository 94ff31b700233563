"""The local step to its end: cells given finished genes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ..._settings import settings
from ...model.likelihoods import COUNTS
from ...posterior.covariances import Packed
from ...posterior.packed import pack
from ...posterior.rates import GeneFeatures
from ...posterior.recomputed import Recomputed
from .cell_step import cell_step
from .equations import TRUST, shortened
from .state import Cells

if TYPE_CHECKING:
    from torch import Tensor

    from ...data import CellMatrix
    from ...posterior import CountPosterior

CELLS_PER_BLOCK = 512
STEPS = 50
# nats per cell that one more step is expected to gain
ENOUGH = 1e-4


def project_counts(matrix: CellMatrix, q: CountPosterior, family: str, start: Cells | None = None) -> CountPosterior:
    """The posterior with (a, A) of the cells of `matrix`, whose columns are the genes of q, from its stored prior.

    `start` holds q to begin with; None begins at the prior's.
    """
    device = q.gene_mean.device
    n = matrix.shape[0]
    features = GeneFeatures.of(q.gene_mean.float(), q.gene_cov.packed().float())
    if start is None:
        cov = pack(q.cell_prior.cov)[None].float() / 100
        start = Cells(q.cell_prior.mean.float().expand(n, -1), cov, q.noise.log_size)
    means, covs = [], []
    keep = n * features.packed_size * 4 <= settings.max_cov_bytes
    for begin in range(0, n, CELLS_PER_BLOCK):
        rows = slice(begin, min(begin + CELLS_PER_BLOCK, n))
        y = matrix.batch(rows, device).dense()
        cells = start.rows(torch.arange(rows.start, rows.stop, device=device))
        cells = Cells(cells.mean.float(), cells.cov, q.noise.log_size[rows].float())
        cells = _converge(y, cells, features, q, family)
        means.append(cells.mean.double())
        covs += [cells.cov] if keep else []
    mean = torch.cat(means)
    if keep:
        return replace(q, cell_mean=mean, cell_cov=Packed(torch.cat(covs)))
    recomputed = Recomputed.of(q.mu, mean, q.gene_mean, q.gene_cov, q.noise, q.cell_prior, family)
    return replace(q, cell_mean=mean, cell_cov=recomputed)


def _converge(y: Tensor, cells: Cells, features: GeneFeatures, q: CountPosterior, family: str) -> Cells:
    """Newton steps until no cell has anything to gain; cells that have not are left alone."""
    mu = torch.as_tensor(q.mu, dtype=torch.float64, device=y.device)
    dispersion, likelihood = q.noise.dispersion.float(), COUNTS[q.noise.likelihood]
    mean, cov = cells.mean.clone(), cells.cov.clone()
    open_ = torch.arange(len(y), device=y.device)
    trust, before = torch.full_like(mean[:, 0], TRUST), torch.full_like(mean[:, 0], torch.inf)
    for step in range(STEPS):
        now = Cells(mean[open_], cov[open_], cells.log_size[open_])
        now, missing = cell_step(y[open_], now, features, mu, dispersion, likelihood, q.cell_prior, family, trust)
        mean[open_], cov[open_] = now.mean, now.cov
        if step == 0:  # it starts from a covariance that is no cell's own
            continue
        still = missing > ENOUGH
        trust = shortened(trust, missing, before)[still]
        open_, before = open_[still], missing[still]
        if len(open_) == 0:
            break
    return Cells(mean, cov, cells.log_size)
