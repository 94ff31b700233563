"""When the Pyro engine lowers its rate, and when it ends."""

from __future__ import annotations

import numpy as np
import torch

from scvi_lfm.inference.pyro.loop import HALVINGS, PATIENCE_STEPS, Schedule


def ends_after(values, steps=1, tol=0.01, rank0=-2.0):
    """Number of values until the fit ends, none where it does not, and the learning rate then."""
    optimiser = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = Schedule([optimiser], tol)
    ended = next((number for number, value in enumerate(values, 1) if schedule.ends(value, rank0, steps)), None)
    return ended, optimiser.param_groups[0]["lr"]


def test_ends_after_so_many_halvings_of_standing_still():
    # the first value is the best, and patience begins anew at each halving
    assert ends_after([-1.0] * 2000) == (1 + HALVINGS * PATIENCE_STEPS, 2.0**-HALVINGS)


def test_steps_count_not_epochs():
    assert ends_after([-1.0] * 2000, steps=PATIENCE_STEPS) == (1 + HALVINGS, 2.0**-HALVINGS)


def test_goes_on_while_it_gains():
    assert ends_after(np.linspace(-1, 0, 500)) == (None, 1.0)


def test_noise_without_gain_is_no_gain():
    noise = np.random.default_rng(0).normal(scale=0.3, size=20_000)
    ended, _ = ends_after(-1 + noise)
    assert ended is not None
