"""After the last step genes whose counts sit in a few cells have arrived, like all others."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import scvi_lfm as lfm
from scvi_lfm.inference.counts import last_step
from scvi_lfm.inference.counts.equations import CLOSER, SHORTER, shortened
from scvi_lfm.posterior import read_fit

ODD = {3: [9, 14, 6], 17: [25], 40: [1, 0, 40]}


@pytest.fixture(scope="module")
def counts():
    """300 cells x 60 genes of simulated counts; the counts of three genes sit in a few cells of a minibatch."""
    adata = lfm.datasets.simulate(300, 60, 3, likelihood="negative_binomial", mu=0.3, factor_scales=[0.8, 0.6, 0.4])
    values = adata.X.toarray()
    for gene, odd in ODD.items():
        values[:, gene] = 0
        values[10 : 10 + len(odd), gene] = odd
    adata.X = values
    return adata


def expected_gains(adata, dense):
    """Nats that a Newton step from the stored q of each gene promises, by loops over genes."""
    q = read_fit(adata, "lfm").posterior
    y, offset = np.asarray(adata.X, dtype=float), q.mu + q.noise.log_size.numpy()
    cells, S = q.cell_mean.numpy(), dense(q.cell_cov.packed()).astype(float)
    genes, T = q.gene_mean.numpy(), dense(q.gene_cov.packed()).astype(float)
    prior_precision = np.linalg.inv(q.gene_prior.cov.numpy())
    u = cells.copy()
    u[:, 0] = 1
    second = u[:, :, None] * u[:, None, :]
    second[:, 1:, 1:] += S[:, 1:, 1:]
    with_activity = cells[:, :1] * u
    with_activity[:, 1:] += S[:, 0, 1:]
    gains = []
    for j, gene in enumerate(genes):
        v = np.concatenate([[1.0], gene[1:]])
        eta = cells @ v + gene[0]
        var = np.einsum("k,ikl,l->i", v, S, v) + np.einsum("kl,ikl->i", T[j], second)
        rate, phi = np.exp(offset + eta + var / 2), float(q.noise.dispersion[j])
        weight, score = rate / (1 + phi * rate), (y[:, j] - rate) / (1 + phi * rate)
        H = prior_precision + np.einsum("i,ikl->kl", weight, second)
        target = (weight * eta + score) @ u - weight @ with_activity + prior_precision @ q.gene_prior.mean.numpy()
        pull = target - H @ gene
        gains.append(0.5 * pull @ np.linalg.solve(H, pull))
    return np.array(gains)


def fitted(adata):
    adata = adata.copy()
    lfm.tl.fit(adata, 3, batch_size=100, max_epochs=1, progress=False)
    return adata


@pytest.mark.filterwarnings("ignore:The fit did not converge")
def test_a_gene_with_counts_in_few_cells_arrives(counts, dense, monkeypatch):
    odd = list(ODD)
    # measured: 0.04; the cells have moved since
    assert expected_gains(fitted(counts), dense)[odd].max() < 0.1
    # it is these steps that bring them there; measured: 0.84
    monkeypatch.setattr(last_step, "STEPS", 0)
    assert expected_gains(fitted(counts), dense)[odd].max() > 0.4


def test_steps_that_swing_are_shortened():
    trust, before = torch.tensor([0.5, 0.5, 0.1]), torch.tensor([1.0, 1.0, 4.0])
    missing = torch.tensor([CLOSER / 2, 1.2, 4.0])
    torch.testing.assert_close(shortened(trust, missing, before), torch.tensor([0.5, 0.5 * SHORTER, 0.1 * SHORTER]))
