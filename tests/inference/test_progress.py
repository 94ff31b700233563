from __future__ import annotations

import contextlib
import io
import math
import sys
import threading
import time

import numpy as np
import pytest

import scvi_lfm as lfm
from scvi_lfm.inference import progress
from scvi_lfm.inference.convergence import remaining_gap, values_left
from scvi_lfm.inference.progress import Bar, Lines, Progress, Report, beating, duration, show_progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("ratio", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("tol", [0.01, 1e-4])
def test_values_left_of_gains_that_shrink_by_a_constant(ratio, tol):
    rank0, limit = -2.0, -1.0
    elbo = limit - 0.5 * ratio ** np.arange(1000)
    for seen in (4, 5, 8):
        left = math.ceil(values_left(elbo[:seen], rank0, tol))
        assert remaining_gap(elbo[: seen + left], rank0) < tol * (1 + 1e-9)
        assert left == 0 or remaining_gap(elbo[: seen + left - 1], rank0) >= tol


@pytest.mark.parametrize("values", [[], [-1.0, -0.9], [-1.0, -0.9, -0.7], [-1.0, -0.8, -0.9]])
def test_values_left_where_nothing_tells(values):
    assert values_left(values, -2.0, 1e-6) == math.inf


@pytest.mark.parametrize(("seconds", "words"), [(0.4, "0 s"), (41.2, "41 s"), (100, "2 min"), (6000, "1.7 h")])
def test_duration(seconds, words):
    assert duration(seconds) == words


def test_report_gives_the_time_left_at_the_pace_of_the_last_epoch(monkeypatch):
    clock = iter([0.0, 10.0, 14.0, 14.0, 20.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    report = Report(100)
    assert report.now() == "before the first minibatch"
    report.update()
    assert report.now() == "first epoch, 1 minibatch(es) so far"
    report.epoch(1, -0.5, math.inf, math.inf)
    assert report.now() == "epoch 1 of at most 100, ELBO -0.50000 per entry; at most 16 min left"
    report.epoch(2, -0.4, 0.03, 5)
    assert report.now() == (
        "epoch 2 of at most 100, ELBO -0.40000 per entry, 3.0% of the gain in ELBO still missing; about 20 s left"
    )
    report.epoch(2, -0.4, 0.03, math.inf)  # a number of factors is still to be chosen
    assert report.now().endswith("3.0% of the gain in ELBO still missing; at most 0 s left")
    report.end("converged to tol=0.005")
    assert report.now() == "2 epoch(s), ELBO -0.40000 per entry, converged to tol=0.005; finishing"
    assert report.last() == "2 epoch(s), ELBO -0.40000 per entry, converged to tol=0.005, in 20 s"


@pytest.mark.parametrize(
    ("stderr", "shown", "kind"),
    [(Terminal(), True, Bar), (io.StringIO(), True, Lines), (Terminal(), False, Progress), (None, True, Progress)],
)
def test_what_is_shown_goes_by_standard_error(monkeypatch, stderr, shown, kind):
    monkeypatch.setattr(sys, "stderr", stderr)
    assert type(show_progress(3, shown=shown)) is kind


def test_lines_come_by_themselves_and_end_with_the_fit(monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    monkeypatch.setattr(progress, "EVERY", 0.01)
    with Lines(7) as lines:
        deadline = time.monotonic() + 60
        while log.getvalue().count("\n") < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        lines.epoch(1, -0.5, math.inf, 6)
        lines.end("stopped by max_epochs")
    written = log.getvalue().splitlines()
    assert written[:3] == ["scvi-lfm: fit: before the first minibatch"] * 3
    assert written[-1].startswith("scvi-lfm: fit: 1 epoch(s), ELBO -0.50000 per entry, stopped by max_epochs, in ")
    assert "scvi_lfm progress" not in {thread.name for thread in threading.enumerate()}


def test_work_around_a_fit_speaks_by_the_same_clock(monkeypatch):
    """Before it of how long it has taken, in it of the fit, after it of work again; the last line is said once."""
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    monkeypatch.setattr(progress, "EVERY", 0.01)

    def wait_for(words):
        deadline = time.monotonic() + 60
        while words not in log.getvalue().splitlines()[-1:] and time.monotonic() < deadline:
            time.sleep(0.001)

    with beating("anomalies", shown=True), beating("check", shown=True):
        wait_for("scvi-lfm: anomalies: at work for 0 s")
        assert sum(thread.name == "scvi_lfm progress" for thread in threading.enumerate()) == 1
        with Lines(7) as lines:
            wait_for("scvi-lfm: anomalies: before the first minibatch")
            lines.epoch(1, -0.5, math.inf, math.inf)
            lines.end("stopped by max_epochs")
        wait_for("scvi-lfm: anomalies: at work for 0 s")
    said = [line.removeprefix("scvi-lfm: anomalies: ") for line in log.getvalue().splitlines()]
    changes = [line for line, before in zip(said, ["", *said], strict=False) if line != before]
    last = "1 epoch(s), ELBO -0.50000 per entry, stopped by max_epochs, in 0 s"
    assert [line for line in changes if "; finishing" not in line and "at most" not in line] == [
        "at work for 0 s",
        "before the first minibatch",
        last,
        "at work for 0 s",
        "done in 0 s",
    ]
    with beating("anomalies", shown=False), pytest.raises(KeyboardInterrupt), beating("fit", shown=True):
        raise KeyboardInterrupt
    assert "scvi_lfm progress" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("shown", [True, False])
def test_every_tool_says_that_it_is_at_work(monkeypatch, shown):
    told = []
    monkeypatch.setattr(progress, "Beat", lambda name: told.append(name) or contextlib.nullcontext())
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(lfm.settings, "progress", shown)
    for tool in (lfm.tl.anomalies, lfm.tl.project, lfm.tl.check):
        with pytest.raises(TypeError):
            tool(None, None) if tool is lfm.tl.project else tool(None)
    assert told == (["anomalies", "project", "check"] if shown else [])


def test_no_last_line_and_no_thread_after_an_error(monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with pytest.raises(KeyboardInterrupt), Lines(7):
        raise KeyboardInterrupt
    assert not log.getvalue()
    assert "scvi_lfm progress" not in {thread.name for thread in threading.enumerate()}


def test_a_fit_goes_on_where_no_thread_can_be_started(monkeypatch):
    def refuse(thread):
        msg = "can't start new thread"
        raise RuntimeError(msg)

    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    monkeypatch.setattr(progress.threading.Thread, "start", refuse)
    with Lines(7) as lines:
        lines.end("stopped by max_epochs")
    assert "stopped by max_epochs" in log.getvalue()


def test_a_log_that_was_closed_does_not_end_the_fit(monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with Lines(7):
        log.close()


@pytest.mark.parametrize("options", [{}, {"likelihood": "poisson"}, {"engine": "pyro", "max_epochs": 3}])
def test_a_fit_ends_with_a_line(monkeypatch, options):
    adata = lfm.datasets.simulate(60, 30, 2, likelihood=options.get("likelihood", "normal"))
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with pytest.warns(UserWarning, match="did not converge") if "engine" in options else contextlib.nullcontext():
        lfm.tl.fit(adata, 2, **options)
    lines = log.getvalue().splitlines()
    assert len(lines) == 1 or all("epoch" in line for line in lines)
    why = "stopped by max_epochs" if "engine" in options else "converged to tol=0.005"
    assert f"per entry, {why}, in " in lines[-1]


def test_a_bar_is_gone_at_the_end(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    lfm.tl.fit(lfm.datasets.simulate(60, 30, 2), 2)
    shown = terminal.getvalue()
    assert "fit: " in shown
    assert "minibatches" in shown
    assert not shown.split("\r")[-1].strip()
