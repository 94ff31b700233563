"""After the last step genes whose counts sit in a few cells have arrived, like all others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import scvi_lfm as lfm
from scvi_lfm.inference.counts import last_step
from scvi_lfm.inference.equations import CLOSER, SHORTER, shortened

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


def expected_gains(counts, g, q, dense):
    """Nats that a Newton step from these genes promises, given the cells, by loops over genes."""
    y, offset = np.asarray(counts.X, dtype=float), float(g.mu) + q.log_size.double().numpy()
    cells, S = q.mean.double().numpy(), dense(q.cov).astype(float)
    genes, T = g.gene_mean.double().numpy(), dense(g.gene_cov).astype(float)
    prior_precision = np.diag(1 / np.concatenate([[float(g.scales.b)], g.scales.B.numpy()]) ** 2)
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
        rate, phi = np.exp(offset + eta + var / 2), float(g.dispersion[j])
        weight, score = rate / (1 + phi * rate), (y[:, j] - rate) / (1 + phi * rate)
        H = prior_precision + np.einsum("i,ikl->kl", weight, second)
        pull = (weight * eta + score) @ u - weight @ with_activity - H @ gene
        gains.append(0.5 * pull @ np.linalg.solve(H, pull))
    return np.array(gains)


@pytest.mark.filterwarnings("ignore:The fit did not converge")
def test_a_gene_with_counts_in_few_cells_arrives(counts, dense, monkeypatch):
    """From no loadings at all, given cells that are held: what the cells do is another question."""
    odd, settle, gains = list(ODD), last_step.settle, []

    def from_nothing(problem, g, cells, missing, *rest):
        g, missing = replace(g, gene_mean=g.gene_mean.clone()), missing.clone()
        g.gene_mean[odd], missing[odd] = 0, 1
        settled = settle(problem, g, cells, missing, *rest)
        gains.extend(expected_gains(counts, genes, cells, dense)[odd] for genes in (g, settled))
        return settled

    monkeypatch.setattr(last_step, "settle", from_nothing)
    lfm.tl.fit(counts.copy(), 3, batch_size=100, max_epochs=1, progress=False)
    before, after = gains
    # measured over seeds: 1 to 9 nats, and then 0.01 to 0.03, as a step that promised less than `ENOUGH` was the last
    assert before.min() > 5 * last_step.ENOUGH
    assert after.max() < last_step.ENOUGH


def test_steps_that_swing_are_shortened():
    trust, before = torch.tensor([0.5, 0.5, 0.1]), torch.tensor([1.0, 1.0, 4.0])
    missing = torch.tensor([CLOSER / 2, 1.2, 4.0])
    torch.testing.assert_close(shortened(trust, missing, before), torch.tensor([0.5, 0.5 * SHORTER, 0.1 * SHORTER]))
