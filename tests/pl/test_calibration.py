from __future__ import annotations

from dataclasses import replace

import matplotlib.pyplot as plt
import pytest

import scvi_lfm as lfm


@pytest.fixture(scope="module")
def report():
    adata = lfm.datasets.simulate(200, 60, 2, likelihood="negative_binomial", mu=0.5)
    lfm.tl.fit(adata, 2, progress=False)
    return lfm.tl.check(adata, refit=False)


def test_draws_every_stratum_and_its_transforms(report):
    strata, bars = lfm.pl.calibration(report, title="NB", show=False)
    present = report.calibration[report.calibration["n"] > 0]
    points = [line for line in strata.lines if line.get_marker() == "o"]
    assert [line.get_xdata()[0] for line in points] == pytest.approx(list(100 * present["coverage"]))
    assert len(strata.get_yticklabels()) == len(present)
    assert strata.get_title() == "NB"
    enough = present[(present["by"] == "expected") & (present["n"] >= 2000)]
    assert len(bars.get_legend().get_texts()) == len(enough)
    plt.close("all")


def test_strata_that_pass_and_that_say_little_look_different(report):
    table = report.calibration.copy()
    table.loc[table.index[-1], ["coverage", "ok"]] = 0.62, False
    strata, bars = lfm.pl.calibration(replace(report, calibration=table), show=False)
    points = [line for line in strata.lines if line.get_marker() == "o"]
    present = table[table["n"] > 0]
    assert [line.get_markerfacecolor() == "white" for line in points] == list(present["n"] < 2000)
    assert points[-1].get_color() != points[0].get_color()
    assert strata.get_xlim()[0] < 62
    assert bars.get_xlim() == (0, 1)
    names = [label.get_text() for label in strata.get_yticklabels()]
    assert names[0] == "all"
    assert names[-1] == "depth quarter 4"


def test_shown_it_returns_nothing(report, monkeypatch):
    shown = []
    monkeypatch.setattr(plt, "show", lambda *args, **kwargs: shown.append(True))
    assert lfm.pl.calibration(report, show=True) is None
    assert shown


def test_wrong_argument():
    with pytest.raises(TypeError, match="lfm.tl.check"):
        lfm.pl.calibration("lfm")
