"""Gauge moves leave every prediction of q and of its prior as it is."""

from __future__ import annotations

from dataclasses import replace
from operator import attrgetter

import numpy as np
import pytest
import torch

from scvi_lfm.posterior.gauge import balance, rotate, shift_constants, translate_cells, translate_genes

R = 3
GENERATOR = torch.Generator().manual_seed(3)
VECTOR, OTHER = torch.randn(2, R, generator=GENERATOR, dtype=torch.float64)
MATRIX = torch.randn(R, R, generator=GENERATOR, dtype=torch.float64)

MOVES = {
    "rotate": rotate(MATRIX),
    "translate_cells": translate_cells(VECTOR),
    "translate_genes": translate_genes(OTHER),
    "shift_constants": shift_constants(VECTOR[0], OTHER[0], R),
    "balance": balance(MATRIX @ MATRIX.T, MATRIX.T @ MATRIX),
}
MOVES["all"] = (
    MOVES["translate_cells"]
    .then(MOVES["rotate"])
    .then(MOVES["translate_genes"])
    .then(MOVES["shift_constants"])
    .then(MOVES["balance"])
    .then(MOVES["translate_cells"])
)


@pytest.mark.parametrize("name", MOVES)
def test_a_move_changes_no_prediction(draw_posterior, predictions, name):
    q = draw_posterior(7, 5, R)
    moved = MOVES[name].posterior(q)
    before, after = predictions(q), predictions(moved)
    for what in before:
        np.testing.assert_allclose(after[what], before[what], rtol=1e-10, atol=1e-10, err_msg=what)
    assert torch.equal(moved.noise.sigma, q.noise.sigma)
    assert torch.equal(moved.noise.predictive, q.noise.predictive)


@pytest.mark.parametrize("name", MOVES)
def test_a_move_does_change_the_latents(draw_posterior, name):
    q = draw_posterior(7, 5, R)
    moved = MOVES[name].posterior(q)
    assert not torch.allclose(moved.cell_mean, q.cell_mean)
    assert not torch.allclose(moved.gene_mean, q.gene_mean)


def test_then_is_one_move_after_the_other(draw_posterior):
    q = draw_posterior(7, 5, R)
    for first in ("rotate", "translate_cells", "translate_genes"):
        for second in ("rotate", "translate_genes", "shift_constants"):
            at_once = MOVES[first].then(MOVES[second]).posterior(q)
            in_turn = MOVES[second].posterior(MOVES[first].posterior(q))
            for name in ("cell_mean", "cell_cov.matrix", "gene_mean", "gene_cov.basis"):
                of = attrgetter(name)
                torch.testing.assert_close(of(at_once), of(in_turn), rtol=1e-12, atol=1e-12)
            assert at_once.mu == pytest.approx(in_turn.mu, abs=1e-14)


def test_rotation_and_translations_do_what_they_say(draw_posterior):
    q = draw_posterior(7, 5, R)
    A, B = q.cell_mean[:, 1:], q.gene_mean[:, 1:]
    rotated = MOVES["rotate"].posterior(q)
    torch.testing.assert_close(rotated.cell_mean[:, 1:], A @ MATRIX)
    torch.testing.assert_close(rotated.gene_mean[:, 1:], B @ torch.linalg.inv(MATRIX).T)
    translated = MOVES["translate_cells"].posterior(q)
    torch.testing.assert_close(translated.cell_mean[:, 1:], A - VECTOR)
    torch.testing.assert_close(translated.gene_mean[:, 0], q.gene_mean[:, 0] + B @ VECTOR)
    translated = MOVES["translate_genes"].posterior(q)
    torch.testing.assert_close(translated.gene_mean[:, 1:], B - OTHER)
    torch.testing.assert_close(translated.cell_mean[:, 0], q.cell_mean[:, 0] + A @ OTHER)


def test_balance_whitens_one_side_and_orders_the_other(draw_posterior):
    q = draw_posterior(30, 20, R)
    A, B = q.cell_mean[:, 1:], q.gene_mean[:, 1:]
    moved = balance(A.T @ A / 30, B.T @ B).posterior(q)
    A, B = moved.cell_mean[:, 1:], moved.gene_mean[:, 1:]
    torch.testing.assert_close(A.T @ A / 30, torch.eye(R, dtype=torch.float64), rtol=0, atol=1e-12)
    lengths = (B.T @ B).diagonal()
    torch.testing.assert_close(B.T @ B, torch.diag(lengths), rtol=0, atol=1e-11)
    assert (lengths.diff() < 0).all()


def test_float32_cells_stay_float32(draw_posterior):
    q = draw_posterior(7, 5, R)
    q = replace(q, cell_mean=q.cell_mean.float())
    assert MOVES["all"].posterior(q).cell_mean.dtype == torch.float32


def test_balancing_twice_moves_nothing_and_turns_no_factor():
    """Factors that are balanced already stay, sign and all; eigenvectors alone would come in either sign."""
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        root = torch.randn(R, R, generator=generator, dtype=torch.float64)
        loadings = torch.randn(50, R, generator=generator, dtype=torch.float64)
        first = balance(root @ root.T, loadings.T @ loadings)
        cell_map, gene_map = first.cell_map[1:, 1:], first.gene_map[1:, 1:]
        cells, genes = cell_map @ root @ root.T @ cell_map.T, gene_map @ loadings.T @ loadings @ gene_map.T
        again = balance(cells, genes)
        torch.testing.assert_close(again.cell_map, torch.eye(R + 1, dtype=torch.float64))
