"""The gauge in which fits are stored: PCA's conventions, margins in a and b, and no prediction changed."""

from __future__ import annotations

from operator import attrgetter

import numpy as np
import pytest
import torch

from scvi_lfm.posterior import to_stored_gauge
from scvi_lfm.posterior.gauge import rotate, shift_constants, translate_cells, translate_genes


@pytest.mark.parametrize(("n", "m", "r"), [(40, 25, 4), (25, 40, 4), (6, 5, 1), (6, 5, 0)])
def test_leaves_every_prediction_as_it_is(draw_posterior, predictions, n, m, r):
    q = draw_posterior(n, m, r)
    before, after = predictions(q), predictions(to_stored_gauge(q))
    for what in before:
        np.testing.assert_allclose(after[what], before[what], rtol=1e-9, atol=1e-9, err_msg=what)


@pytest.mark.parametrize(("n", "m", "r"), [(40, 25, 4), (25, 40, 4), (6, 5, 1)])
def test_conventions(draw_posterior, n, m, r):
    q = to_stored_gauge(draw_posterior(n, m, r))
    np.testing.assert_allclose(q.cell_mean.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(q.gene_mean.mean(0), 0, atol=1e-12)
    A, B = q.cell_mean[:, 1:].numpy(), q.gene_mean[:, 1:].numpy()
    np.testing.assert_allclose(B.T @ B, np.eye(r), atol=1e-12)
    lengths = (A.T @ A).diagonal()
    np.testing.assert_allclose(A.T @ A, np.diag(lengths), atol=1e-10 * lengths.max())
    assert (np.diff(lengths) < 0).all()
    assert (B[np.abs(B).argmax(0), range(r)] > 0).all()


def test_is_the_singular_value_decomposition_of_the_interaction(draw_posterior):
    q = draw_posterior(40, 25, 4)
    eta = q.mu + q.cell_mean[:, :1] + q.gene_mean[:, 0] + q.cell_mean[:, 1:] @ q.gene_mean[:, 1:].T
    eta = eta.numpy()
    stored = to_stored_gauge(q)
    assert stored.mu == pytest.approx(eta.mean(), abs=1e-12)
    np.testing.assert_allclose(stored.cell_mean[:, 0], eta.mean(1) - eta.mean(), atol=1e-12)
    np.testing.assert_allclose(stored.gene_mean[:, 0], eta.mean(0) - eta.mean(), atol=1e-12)
    interaction = eta - eta.mean(0) - eta.mean(1)[:, None] + eta.mean()
    left, values, right = np.linalg.svd(interaction, full_matrices=False)
    signs = np.sign((right[:4] * stored.gene_mean[:, 1:].numpy().T).sum(1))
    np.testing.assert_allclose(stored.gene_mean[:, 1:], (signs[:, None] * right[:4]).T, atol=1e-10)
    np.testing.assert_allclose(stored.cell_mean[:, 1:], left[:, :4] * (signs * values[:4]), atol=1e-9)


def test_is_idempotent(draw_posterior):
    once = to_stored_gauge(draw_posterior(40, 25, 4))
    twice = to_stored_gauge(once)
    for name in ("cell_mean", "cell_cov.matrix", "gene_mean", "gene_cov.basis"):
        np.testing.assert_allclose(attrgetter(name)(twice), attrgetter(name)(once), atol=1e-9, err_msg=name)
    for name in ("cell_prior", "gene_prior"):
        np.testing.assert_allclose(getattr(twice, name).mean, getattr(once, name).mean, atol=1e-9, err_msg=name)
        np.testing.assert_allclose(getattr(twice, name).cov, getattr(once, name).cov, atol=1e-9, err_msg=name)
    assert twice.mu == pytest.approx(once.mu, abs=1e-10)


def test_does_not_depend_on_the_gauge_it_starts_from(draw_posterior):
    q = draw_posterior(40, 25, 3)
    generator = torch.Generator().manual_seed(1)
    normal = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    move = translate_cells(normal[3]).then(rotate(normal[:3])).then(translate_genes(normal[4]))
    moved = move.then(shift_constants(normal[0, 0], normal[0, 1], 3)).posterior(q)
    stored, again = to_stored_gauge(q), to_stored_gauge(moved)
    for name in ("cell_mean", "cell_cov.matrix", "gene_mean"):
        np.testing.assert_allclose(attrgetter(name)(again), attrgetter(name)(stored), atol=1e-8, err_msg=name)
    np.testing.assert_allclose(again.cell_prior.cov, stored.cell_prior.cov, atol=1e-8)
    np.testing.assert_allclose(again.gene_prior.mean, stored.gene_prior.mean, atol=1e-8)


def test_activity_follows_the_number_of_genes_detected(pbmc_fitted):
    detected = pbmc_fitted.X.getnnz(axis=1)
    assert np.corrcoef(pbmc_fitted.obs["lfm_a"], detected)[0, 1] > 0.9
