from __future__ import annotations

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import StepPatch

import scvi_lfm as lfm
from drawn_texts import drawn_texts


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


def test_densities_do_not_fall_to_zero_at_their_ends(report):
    """Of a step line that is closed, both ends would look as if no values lay there."""
    bars = lfm.pl.calibration(report, show=False)[1]
    steps = [patch for patch in bars.patches if isinstance(patch, StepPatch)]
    assert steps
    for patch in steps:
        assert patch.get_path().vertices[:, 1].min() == pytest.approx(patch.get_data().values.min())


def changed(report, coverage, ks=0.01, **more):
    table = report.calibration.assign(coverage=coverage, ks=ks)
    of_all = table["by"] == "all"
    table["ok"] = np.where(of_all, table["coverage"].between(0.88, 0.92), table["coverage"].between(0.85, 0.95))
    return replace(report, calibration=table, **more)


def note(report):
    strata, _ = lfm.pl.calibration(report, show=False)
    (text,) = strata.texts
    return " ".join(text.get_text().split("\n")), to_hex(text.get_color())


def test_the_verdict_is_in_words(report):
    n = len(report.calibration)
    good, wide, narrow = np.full(n, 0.901), np.full(n, 0.97), np.full(n, 0.8)
    counted = (report.calibration["n"] >= 2000) & (report.calibration["by"] != "all")
    enough = int(counted.sum())
    assert 1 < enough < n - 1
    assert note(changed(report, good, leftover=1.0)) == (
        "Predictions can be trusted: 90.1% of all values lie inside 90.1% to 90.1% in every stratum",
        "#0072b2",
    )
    words, color = note(changed(report, wide, leftover=1.0))
    assert words.startswith("Predictions cannot be trusted everywhere: 97.0% of all values lie inside")
    assert words.endswith(f"Intervals are too wide in {enough} of {enough} strata")
    assert color == "#d55e00"
    assert f"too narrow in {enough} of {enough} strata" in note(changed(report, narrow, leftover=1.0))[0]
    words, color = note(changed(report, good, ks=np.where(np.arange(n) == counted.argmax(), 0.31, 0.01), leftover=1.0))
    assert words.endswith("Their shape is wrong all the same: transforms are up to 0.31 from uniform")
    assert color == "#d55e00"
    assert "shape" not in note(changed(report, good, ks=np.where(counted, 0.01, 0.31), leftover=1.0))[0]
    words, color = note(changed(report, good, leftover=3.2))
    assert "Structure is left over (3.2 times the noise): more factors would take it up" in words
    assert color == "#d55e00"


def test_the_verdict_is_that_of_the_report(report):
    """Both judge by the same bounds."""
    assert ("can be trusted" in note(report)[0]) == ("can be trusted" in report.summary)


def test_draws_on_two_axes(report):
    figure, two = plt.subplots(2)
    assert lfm.pl.calibration(report, ax=two, show=False) == list(two)
    assert plt.get_fignums() == [figure.number]
    with pytest.raises(ValueError, match="`ax` has room for one panel, and there are 2 to draw"):
        lfm.pl.calibration(report, ax=two[0])


def test_nothing_overlaps(report):
    texts = drawn_texts(lfm.pl.calibration(report, title="My title", return_fig=True))
    assert texts.overlaps() == []
    assert texts.cut_off() == []


def test_wrong_argument():
    with pytest.raises(TypeError, match="lfm.tl.check"):
        lfm.pl.calibration("lfm")
