"""The local step to its end: cells given finished genes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from ..._memory import naming_memory
from ...data.blocks import Blocks
from ...linalg.covariances import Packed
from ...linalg.packed import pack
from ...model.priors import free_coordinates, with_known
from ...posterior.rates import GeneFeatures
from ...posterior.recomputed import Recomputed
from ..equations import TRUST, NewtonStep, shortened
from ..normal.sweep import insert_known
from .cell_step import cell_step
from .state import Cells, CountProblem, holds_covariances, near

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from ...data import Batch, CellMatrix
    from ...posterior import CountPosterior

# a step holds several numbers for each entry of a block, and for each cell the products of all pairs of latents
CELLS_PER_BLOCK = 256
STEPS = 50
# nats per cell: a step that is expected to leave less is the last
ENOUGH = 1e-4
# a step leaves less than this share of what was missing; from a covariance that is far off it may leave all of it
LEFT = 0.1


@naming_memory("place the cells", "Place fewer cells at a time")
def project_counts(matrix: CellMatrix, q: CountPosterior, family: str, start: Cells | None = None) -> CountPosterior:
    """The posterior with (a, A) of the cells of `matrix`, whose columns are the genes of q, from its stored prior.

    `start` holds q to begin with; None begins at the prior's.
    """
    device = q.gene_mean.device
    n, prior = matrix.shape[0], q.cell_prior.given_known(q.n_known)
    genes = q.gene_mean.float(), q.gene_cov.packed().float()
    features = GeneFeatures.of(*genes)
    blocks = Blocks.of_size(matrix, device, CELLS_PER_BLOCK if device.type == "cpu" else None)
    if start is None:
        cov = pack(with_known(prior.cov, q.n_known))[None] / 100
        begun = Cells(insert_known(prior.means(blocks.known), blocks.known), cov, q.noise.log_size).in_float32()
        first = features
    else:
        begun = replace(start, log_size=q.noise.log_size).in_float32()
        first = near(*genes, begun)
    free = free_coordinates(q.gene_mean.shape[1], q.n_known, device)
    keep = holds_covariances(n, q.gene_mean.shape[1])
    mu = torch.as_tensor(q.mu, dtype=torch.float64, device=device)
    problem = CountProblem(*matrix.shape, family, likelihood=q.likelihood)
    parameters = q.noise.of_cells(None, torch.float32)
    step = partial(cell_step, problem, mu=mu, parameters=parameters, prior=prior)

    def place(batch: Batch, cells: Cells) -> tuple[Tensor, Tensor | None]:
        cells = _converge(step, (first, features), batch, cells.with_own_cov(), close=start is not None)
        return insert_known(cells.mean[:, free].double(), batch.known), cells.cov if keep else None

    means, covs = zip(*blocks.each(place, [begun.part(cells) for cells in blocks.places]), strict=True)
    mean = torch.cat(means)
    if keep:
        return replace(q, cell_mean=mean, cell_cov=Packed(torch.cat(covs)))
    recomputed = Recomputed.of(q.mu, mean, q.gene_mean, q.gene_cov, q.noise, prior, family)
    return replace(q, cell_mean=mean, cell_cov=recomputed)


def _converge(
    newton: Callable[..., tuple[Cells, Tensor]],
    features: tuple[GeneFeatures, GeneFeatures],
    batch: Batch,
    cells: Cells,
    *,
    close: bool,
) -> Cells:
    """Newton steps until no cell has anything to gain; cells that have not are left alone.

    The first has features of genes of its own. The second starts from a covariance that is far off unless that of the
    first was `close`.
    """
    y, observed = batch.dense(), batch.is_observed()
    mean, cov = cells.mean.clone(), cells.cov.clone()
    open_ = torch.arange(len(y), device=y.device)
    trust, before = torch.full_like(mean[:, 0], TRUST), torch.full_like(mean[:, 0], torch.inf)
    last = None
    for step in range(STEPS):
        at = slice(None) if len(open_) == len(y) else open_  # no copy of all counts
        now = Cells(mean[at], cov[at], cells.log_size[at])
        which = None if observed is None else observed[at]
        new, missing = newton(y[at], now, features=features[min(step, 1)], trust=trust, observed=which)
        move = NewtonStep(now.mean.clone(), new.mean - now.mean, missing)
        mean[at], cov[at] = new.mean, new.cov
        if step == 0:  # it starts from a covariance that is no cell's own
            continue
        still = missing * (LEFT if close or step > 1 else 1) > ENOUGH
        trust = shortened(trust, missing, before)[still]
        open_, before = open_[still], missing[still]
        if len(open_) == 0:
            break
        if step > 1:  # the one before starts from such a covariance in part
            move = move.at(still)
            if last is not None:
                last = last.at(still)
                mean[open_] = move.mixed(last, new.cov[still])
                before = torch.where(move.closer(last), torch.inf, before)
            last = move
    return Cells(mean, cov, cells.log_size)
