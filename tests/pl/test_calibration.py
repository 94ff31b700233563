from __future__ import annotations

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


def test_wrong_argument():
    with pytest.raises(TypeError, match="lfm.tl.check"):
        lfm.pl.calibration("lfm")
