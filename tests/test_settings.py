"""Settings, what tab completion shows, and work where there is no screen to write to."""

from __future__ import annotations

import importlib
import io
import logging
import sys

import numpy as np
import pytest

import scvi_lfm as lfm


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("verbose", "There is no settings.verbose. Did you mean 'verbosity'?"),
        ("Device", "There is no settings.Device. Did you mean 'device'?"),
        ("seed", "There are: 'compile', 'device', 'half_density', 'max_cov_bytes', 'progress', 'verbosity'."),
    ],
)
def test_a_setting_that_is_not_there_is_refused(settings, name, words):
    with pytest.raises(AttributeError) as error:
        setattr(settings, name, 3)
    assert words in str(error.value)
    assert not hasattr(settings, name)


@pytest.mark.parametrize("value", [2e9, np.int64(2e9), 2_000_000_000])
def test_whole_numbers_of_any_type(settings, value):
    settings.max_cov_bytes = value
    assert settings.max_cov_bytes == 2_000_000_000
    assert type(settings.max_cov_bytes) is int
    settings.verbosity = np.int64(2)
    assert type(settings.verbosity) is int


@pytest.mark.parametrize("value", [1.5, -1, True, "2", None, np.inf, [1]])
def test_other_values_are_refused(settings, value):
    is_number = isinstance(value, float | int) and value is not True
    kind = ValueError if is_number else TypeError
    with pytest.raises(kind, match=r"settings\.max_cov_bytes must be a whole number of bytes, at least 0, found"):
        settings.max_cov_bytes = value
    with pytest.raises(kind, match=r"settings\.verbosity must be one of \[0, 1, 2, 3\], found"):
        settings.verbosity = value


def test_a_density_is_a_share_or_nothing(settings):
    for value in (0, 0.25, np.float32(0.5), 1, None):
        settings.half_density = value
        assert settings.half_density == value
    for value, kind in (
        (1.5, ValueError),
        (-0.1, ValueError),
        (np.nan, ValueError),
        ("0.5", TypeError),
        (True, TypeError),
    ):
        with pytest.raises(kind, match=r"settings\.half_density must be a share of entries between 0 and 1, or None"):
            settings.half_density = value
    assert settings.half_density is None


@pytest.mark.parametrize("name", ["compile", "progress"])
def test_flags_are_true_or_false(settings, name):
    for value in (False, True):
        setattr(settings, name, value)
        assert getattr(settings, name) is value
    for value in (1, "yes", None):
        with pytest.raises(TypeError, match=rf"settings\.{name} must be True or False, found"):
            setattr(settings, name, value)


def test_a_device_is_named_as_torch_names_it(settings):
    for value in ("auto", "cpu", "cpu:0", "cuda", "cuda:12"):
        settings.device = value
        assert settings.device == value
    for value in ("gpu", "mps", "cuda:", "CPU", ""):
        with pytest.raises(
            ValueError, match=r"settings\.device must be 'auto', 'cpu', 'cuda' or such as 'cuda:0', found"
        ):
            settings.device = value


def test_completion_shows_public_names_alone():
    assert dir(lfm.settings) == ["compile", "device", "half_density", "max_cov_bytes", "progress", "verbosity"]
    for name in ("", ".tl", ".pl", ".get", ".datasets", ".model"):
        module = importlib.import_module(f"scvi_lfm{name}")
        public = {*module.__all__, *{".tl": ["CheckReport"], ".pl": ["ExplorerPage"]}.get(name, [])}
        assert set(dir(module)) == public
        assert all(hasattr(module, shown) for shown in public)


def test_a_fit_where_there_is_no_screen(settings, monkeypatch):
    adata = lfm.datasets.simulate(30, 20, 2)
    adata.X = np.rint(adata.X)
    monkeypatch.setattr(sys, "stderr", None)
    settings.verbosity = 3
    with pytest.warns(UserWarning, match="X holds whole numbers"):
        lfm.tl.fit(adata, 2, likelihood="normal", progress=True)
    assert "lfm" in adata.uns


def test_the_log_goes_to_where_stderr_is_at_the_time(settings, monkeypatch):
    settings.verbosity = 2
    closed, later = io.StringIO(), io.StringIO()
    closed.close()
    for stream in (None, closed, later):
        monkeypatch.setattr(sys, "stderr", stream)
        logging.getLogger("scvi_lfm").info("a line of %s", "words")
    assert later.getvalue() == "scvi_lfm: a line of words\n"


@pytest.mark.parametrize("options", [{}, {"likelihood": "poisson"}])
def test_a_fit_needs_no_screen(monkeypatch, options):
    monkeypatch.setattr(sys, "stderr", None)
    adata = lfm.datasets.simulate(40, 30, 2, mu=1, **options)
    lfm.tl.fit(adata, 2, **options)
    assert "X_lfm" in adata.obsm
