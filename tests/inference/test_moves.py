"""Gauge moves inside the fit: no prediction changes, and each is the best of its kind."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from scvi_lfm.inference.moves import (
    _best_cell_translation,
    _best_constants,
    _best_gene_translation,
    improve_gauge,
)
from scvi_lfm.inference.normal.elbo import elbo
from scvi_lfm.posterior.gauge import balance, rotate, shift_constants, translate_cells, translate_genes

N_CELLS = 14


def moved(state, move):
    return replace(
        state,
        globals=state.globals.moved(move),
        cell_mean=move.cells(state.cell_mean),
        cell_cov=move.cell_cov(state.cell_cov),
    )


def best(state, kind):
    xi_xi = state.globals.second_moment()
    g = state.globals
    return kind(g.mu, g.scales, state.statistics.xx, xi_xi, N_CELLS)


def generic_move(r):
    generator = torch.Generator().manual_seed(5)
    normal = torch.randn(r + 2, r, generator=generator, dtype=torch.float64)
    move = rotate(normal[:r]).then(translate_cells(normal[r])).then(translate_genes(normal[r + 1]))
    return move.then(shift_constants(normal[0, 0], normal[0, 1], r))


def test_averages_move_with_the_cells(draw_state):
    state, move = draw_state(N_CELLS, 11, 3), generic_move(3)
    expected = moved(state, move).statistics
    statistics = state.statistics.moved(move)
    for name in ("xx", "yx", "yy"):
        torch.testing.assert_close(getattr(statistics, name), getattr(expected, name), rtol=1e-12, atol=1e-12)


def test_no_move_changes_a_prediction(draw_state, eta_moments):
    state, move = draw_state(N_CELLS, 11, 3), generic_move(3)
    after = moved(state, move)
    np.testing.assert_allclose(after.expected_squares(eta_moments), state.expected_squares(eta_moments), rtol=1e-11)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("kind", "move_by"),
    [
        (_best_cell_translation, lambda t: translate_cells(t[:3])),
        (_best_gene_translation, lambda t: translate_genes(t[:3])),
        (_best_constants, lambda t: shift_constants(t[0], t[1], 3)),
    ],
)
def test_a_translation_is_the_one_of_highest_elbo(draw_state, kind, move_by, seed):
    state = draw_state(N_CELLS, 11, 3, seed=seed)
    after = moved(state, best(state, kind))
    assert after.elbo > state.elbo

    def further(t):
        return moved(after, move_by(t)).elbo

    gradient = torch.autograd.functional.jacobian(further, torch.zeros(3, dtype=torch.float64))
    at_start = torch.autograd.functional.jacobian(
        lambda t: moved(state, move_by(t)).elbo, torch.zeros(3, dtype=torch.float64)
    )
    assert float(gradient.abs().max()) < 1e-9 * float(at_start.abs().max())


def with_best_scales(state):
    """kappa_B at its maximum."""
    g = state.globals
    squares = g.second_moment().diagonal()[2:] / len(g.precision)
    return replace(state, globals=replace(g, scales=replace(g.scales, B=squares.sqrt())))


def test_balance_is_the_rotation_of_highest_elbo(draw_state):
    state = draw_state(N_CELLS, 11, 3)
    g = state.globals
    state = replace(state, globals=replace(g, scales=replace(g.scales, A=torch.ones(3, dtype=torch.float64))))
    moment = g.second_moment()
    after = moved(state, balance(state.statistics.xx[2:, 2:], moment[2:, 2:]))
    eye = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(after.statistics.xx[2:, 2:], eye, rtol=0, atol=1e-12)
    squares = after.globals.second_moment()[2:, 2:]
    lengths = squares.diagonal()
    torch.testing.assert_close(squares, torch.diag(lengths), rtol=0, atol=1e-11)
    assert (lengths.diff() < 0).all()

    def value(change):
        return with_best_scales(moved(after, rotate(eye + change))).elbo

    start = value(torch.zeros_like(eye))
    assert start > with_best_scales(state).elbo
    assert torch.autograd.functional.jacobian(value, torch.zeros_like(eye)).abs().max() < 1e-9 * abs(float(start))
    generator = torch.Generator().manual_seed(0)
    for size in (0.01, 0.1, 1.0):
        assert value(size * torch.randn(3, 3, generator=generator, dtype=torch.float64)) < start


@pytest.mark.parametrize("cell_scale", [1.0, 0.4])
@pytest.mark.parametrize("rotates", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_all_moves_together_raise_the_elbo(draw_state, cell_scale, rotates, seed):
    state = draw_state(N_CELLS, 11, 3, seed=seed)
    g = state.globals
    scales = replace(g.scales, A=torch.full((3,), cell_scale, dtype=torch.float64))
    state = replace(state, globals=replace(g, scales=scales))
    g, statistics, cov = improve_gauge(state.globals, state.statistics, state.cell_cov, N_CELLS, rotates=rotates)
    value = elbo(g, statistics, cov, N_CELLS)
    assert value > state.elbo
    for _ in range(60):
        g, statistics, cov = improve_gauge(g, statistics, cov, N_CELLS, rotates=rotates)
        assert (now := elbo(g, statistics, cov, N_CELLS)) > value - 1e-10
        value = now
    if rotates:
        expected = cell_scale**2 * torch.eye(3, dtype=torch.float64)
        torch.testing.assert_close(statistics.xx[2:, 2:], expected, rtol=0, atol=1e-10)
    else:
        assert torch.equal(g.scales.B, scales.B)


def test_translation_is_not_the_mean(draw_state):
    """Moving the mean of A into b lowers the ELBO where b's prior is tight."""
    state = draw_state(N_CELLS, 11, 3)
    g = state.globals
    tight = replace(g.scales, b=torch.tensor(0.05, dtype=torch.float64))
    state = replace(state, globals=replace(g, scales=tight))
    assert moved(state, translate_cells(state.cell_mean[:, 1:].mean(0))).elbo < state.elbo
    assert moved(state, best(state, _best_cell_translation)).elbo > state.elbo
