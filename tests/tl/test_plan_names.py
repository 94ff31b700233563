"""What all names cost is no part of the time that a plan takes times the cells."""

from __future__ import annotations

import pandas as pd

import scvi_lfm as lfm
from scvi_lfm.tl import _plan_making

ALL_NAMES = 1000.0  # seconds, by the clock below


def test_the_look_at_all_names_is_not_counted(monkeypatch):
    adata = lfm.datasets.simulate(60, 20, 2)
    now, looked_at, is_unique = [0.0], set(), pd.Index.is_unique.fget

    def slowly(index):
        if id(index) not in looked_at:
            looked_at.add(id(index))
            now[0] += ALL_NAMES
        return is_unique(index)

    monkeypatch.setattr(pd.Index, "is_unique", property(slowly))
    monkeypatch.setattr(_plan_making, "work_clock", lambda: now[0])
    seconds = lfm.plan(adata, 2).seconds
    assert id(adata.obs_names) in looked_at
    assert seconds < ALL_NAMES
