from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_hex

import scvi_lfm as lfm
from drawn_texts import drawn_texts

RATIO, END, WITHOUT = 0.4, -1.0, -2.0


def set_elbo(adata, passes, last, rank0=WITHOUT, **fit):
    """As `tl.fit` leaves it: a value for each epoch, and one of the result at the end of the last."""
    epoch = np.append(np.arange(1.0, len(passes) + 1), len(passes))
    adata.uns["lfm"]["elbo"] = {"epoch": epoch, "value": np.append(passes, last), "rank0": rank0}
    adata.uns["lfm"]["params"] |= fit
    return adata


def geometric(n):
    """Values that come nearer to the end by the same factor each time."""
    return END - 0.5 * RATIO ** np.arange(n)


def lines(axes):
    return {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}


def words(axes):
    return next(text.get_text() for text in axes.texts if "ELBO per entry" in text.get_text())


@pytest.mark.parametrize("likelihood", ["normal", "negative_binomial", "ordinal"])
def test_draws_the_share_that_is_missing(adata, likelihood):
    """Under other likelihoods than Normal ones the last pass is one more step, and all shares are known exactly."""
    true = geometric(6)
    set_elbo(adata, true[:5], true[5], likelihood=likelihood)
    axes = lfm.pl.elbo(adata, show=False)
    left = END - true[4] if likelihood == "normal" else END - true[5]  # after the last pass
    end = true[5] + left
    expected = 100 * (end - true) / (end - WITHOUT)
    drawn = lines(axes)
    assert axes.get_yscale() == "log"
    assert drawn["after an epoch"].get_xdata() == pytest.approx(np.arange(1, 6))
    assert drawn["after an epoch"].get_ydata() == pytest.approx(expected[:5])
    assert drawn["after the last pass"].get_xdata() == pytest.approx([5])
    assert drawn["after the last pass"].get_ydata() == pytest.approx([100 * left / (end - WITHOUT)])
    table = lfm.get.elbo_df(adata)
    assert list(100 * table["missing"]) == pytest.approx(np.append(expected[:5], 100 * left / (end - WITHOUT)))


def test_a_result_that_lies_below_the_last_epoch_is_no_second_unexplained_point(adata):
    """Of counts of which some genes were left out of epochs, the last value speaks of all genes under one prior."""
    true = geometric(5)
    set_elbo(adata, true, true[4] - 0.01, likelihood="poisson")
    drawn = lines(lfm.pl.elbo(adata, show=False))
    assert set(drawn) == {"after an epoch", "after the last pass", "tol = 0.5%"}
    left = (END - true[4]) * RATIO
    end = true[4] + left
    assert drawn["after an epoch"].get_ydata() == pytest.approx(100 * (end - true) / (end - WITHOUT))
    assert drawn["after the last pass"].get_ydata() == pytest.approx([100 * left / (end - WITHOUT)])
    assert drawn["after the last pass"].get_marker() == "D" != drawn["after an epoch"].get_marker()


def test_the_tolerance_is_a_line(adata):
    set_elbo(adata, geometric(5), geometric(6)[5], tol=0.02)
    (line,) = (line for label, line in lines(lfm.pl.elbo(adata, show=False)).items() if label.startswith("tol"))
    assert list(line.get_ydata()) == pytest.approx([2, 2])
    assert line.get_label() == "tol = 2%"


def test_a_fit_that_stopped_itself_ends_below_the_line(adata):
    axes = lfm.pl.elbo(adata, show=False)
    drawn = lines(axes)
    assert drawn["after the last pass"].get_ydata()[0] < drawn["tol = 0.5%"].get_ydata()[0]
    assert words(axes).startswith("Settled: about ")


def test_a_gap_that_is_none_is_drawn_all_the_same(adata):
    set_elbo(adata, [-1.5, -1.0, -1.0], -1.0)
    axes = lfm.pl.elbo(adata, show=False)
    assert lines(axes)["after the last pass"].get_ydata()[0] > 0
    assert "less than 0.001% of the gain missing" in words(axes)


@pytest.mark.parametrize(
    ("fit", "passes", "verdict"),
    [
        ({"converged": True}, geometric(7), "Settled: about 0.2% of the gain missing"),
        ({"converged": False}, geometric(4), "Not settled, stopped by max_epochs: about 3.2% of the gain missing"),
        ({"converged": False}, geometric(2), "Not settled, stopped by max_epochs"),
        ({"converged": True}, geometric(4), "Settled (weak factors): about 3.2% of the gain missing"),
        ({"converged": True}, [-2.0, -2.0, -2.0], "Settled: the factors gain nothing"),
        (
            {"converged": True, "held_out": {"stopped": True}},
            geometric(4),
            "Stopped, as held-out entries were predicted worse: about 3.2% of the gain missing",
        ),
    ],
)
def test_the_verdict_is_in_words(adata, fit, passes, verdict):
    set_elbo(adata, passes, passes[-1])
    if "held_out" in fit:
        zeros = np.zeros(len(passes) + 1)
        fit = fit | {"held_out": fit["held_out"] | {"log_density": zeros, "rmse": zeros}}
    adata.uns["lfm"] |= fit
    axes = lfm.pl.elbo(adata, show=False)
    first, bounds = " ".join(words(axes).split("\n")).split(" ELBO per entry ")
    assert first == verdict
    assert bounds == f"{passes[-1]:.5g}; without factors -2"
    (note,) = axes.texts
    assert (to_hex(note.get_color()) == "#d55e00") == (not fit["converged"])


def test_black_box_fits_have_no_estimate(adata):
    """Their ELBO jumps around, and another rule ends them."""
    noisy = [-1.8, -1.2, -1.3, -1.1]
    set_elbo(adata, noisy, -1.15, engine="pyro")
    assert lfm.get.elbo_df(adata)["missing"].isna().all()
    axes = lfm.pl.elbo(adata, show=False)
    assert axes.get_ylabel() == "ELBO per entry"
    assert words(axes).startswith("Settled: the learning rate came to its end")


@pytest.mark.parametrize("passes", [[-1.8, -1.2], [-1.8, -1.5, -1.1]], ids=["too few", "gains that grow"])
def test_where_nothing_tells_the_value_is_drawn_by_epoch(adata, passes):
    set_elbo(adata, passes, -1.0)
    axes = lfm.pl.elbo(adata, show=False)
    drawn = lines(axes)
    table = lfm.get.elbo_df(adata)
    np.testing.assert_array_equal(drawn["after an epoch"].get_xdata(), table["epoch"][:-1])
    np.testing.assert_array_equal(drawn["after an epoch"].get_ydata(), table["value"][:-1])
    assert list(drawn["after the last pass"].get_ydata()) == [-1.0]
    assert list(drawn["without factors"].get_ydata()) == pytest.approx([-2, -2])
    assert axes.get_yscale() == "linear"


@pytest.mark.parametrize("rank0", [-1.0, np.nan])
def test_factors_that_gain_nothing_have_no_share(adata, rank0):
    set_elbo(adata, [-1.0, -1.0, -1.0], -1.0, rank0)
    axes = lfm.pl.elbo(adata, show=False)
    assert ("without factors" in lines(axes)) == ("without factors" in words(axes)) == np.isfinite(rank0)
    assert axes.get_ylabel() == "ELBO per entry"


@pytest.mark.parametrize("n", [4, 12, 200])
@pytest.mark.parametrize("ratio", [0.1, 0.7])
def test_ticks_are_plain_numbers(adata, n, ratio):
    """Neither powers nor offsets are to be worked out, and there are at least two."""
    passes = END - 0.9 * ratio ** np.arange(n)
    set_elbo(adata, passes, passes[-1])
    axes = lfm.pl.elbo(adata, show=False)
    shown = [
        text
        for text in drawn_texts(axes.figure).words
        if text in {label.get_text() for label in axes.get_yticklabels()}
    ]
    assert len(shown) >= 2
    assert all(float(text) > 0 for text in shown)
