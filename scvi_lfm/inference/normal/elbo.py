r"""The evidence lower bound of the Normal model, in closed form.

.. math::

    \mathrm{ELBO} = \sum_{ij} E_q \log p(y_{ij} \mid \eta_{ij}) - \mathrm{KL}(q(\mu) \| p)
        - \sum_i \mathrm{KL}(q(a_i, A_i) \| p) - \sum_j \mathrm{KL}(q(b_j, B_j) \| p)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ...model.likelihoods import normal
from ...model.priors import free_coordinates, kl_of_mu
from .natural_gradient import expected_squares
from .state import distinct

if TYPE_CHECKING:
    from torch import Tensor

    from .state import NormalGlobals, NormalStatistics


def elbo(g: NormalGlobals, statistics: NormalStatistics, cell_cov: Tensor, n_cells: int) -> Tensor:
    """ELBO of the whole data set, from averages over cells.

    Where S_i differs by cell, `cell_cov` is any matrix whose log determinant is the mean of theirs.
    """
    data = n_cells * normal.expected_log_density(expected_squares(g, statistics), g.precision).sum()
    data = data + 0.5 * n_cells * len(g.precision) * statistics.mean_log_weight
    return data - kl_of_mu(g.mu, g.mu_var) - n_cells * kl_cell(g, statistics, cell_cov) - kl_genes(g)


def kl_cell(g: NormalGlobals, statistics: NormalStatistics, cell_cov: Tensor) -> Tensor:
    """Mean over cells of the KL of q(a, A) from its prior."""
    prior_var = g.scales.cell_var
    free = free_coordinates(len(cell_cov), g.n_known, cell_cov.device)
    second_moment = statistics.xx.diagonal()[1:][free]
    return 0.5 * ((second_moment / prior_var - 1 + prior_var.log()).sum() - torch.logdet(cell_cov[free][:, free]))


def kl_genes(g: NormalGlobals) -> Tensor:
    """Sum over genes of the KL of q(b, B) from its prior."""
    prior_var = g.scales.gene_var
    n_genes = len(g.gene_mean)
    diagonal = distinct(g.gene_diagonal)
    second_moment = g.gene_mean.square().sum(0) + n_genes * diagonal.mean(0) @ g.gene_basis.square().T
    log_det = n_genes * (2 * torch.linalg.slogdet(g.gene_basis).logabsdet + diagonal.log().sum(1).mean())
    return 0.5 * ((second_moment / prior_var - n_genes + n_genes * prior_var.log()).sum() - log_det)
