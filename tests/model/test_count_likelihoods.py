"""Likelihoods of counts against scipy, sums over all values, and derivatives."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from types import FunctionType

import numpy as np
import pytest
import torch
from scipy.stats import nbinom, poisson

import scvi_lfm as lfm
from scvi_lfm.model.likelihoods import CONTINUOUS, COUNTS
from scvi_lfm.posterior import read_fit

RATES = np.array([1e-3, 0.05, 1.0, 7.0, 60.0])
# those below 1e-8 are taken as Poisson's
DISPERSIONS = (0.0, 1e-8, 1e-3, 0.3, 2.0, 50.0)
NAMES = tuple(COUNTS)


def reference(rate, dispersion):
    """The count of which each unit sees all, or whether it is zero."""
    return nbinom(1 / dispersion, 1 / (1 + dispersion * rate)) if dispersion > 1e-8 else poisson(rate)


def log_reference(name, y, rate, dispersion):
    count = reference(rate, dispersion)
    return np.where(y > 0, count.logsf(0), count.logpmf(0)) if COUNTS[name].MAXIMUM == 1 else count.logpmf(y)


def values(name, rate, dispersion, *, reach=60):
    """All values that are likely enough to matter: far out, each `1 + dispersion rate` take one more nat."""
    if COUNTS[name].MAXIMUM is not None:
        return np.arange(COUNTS[name].MAXIMUM + 1.0)
    return np.arange(100 + reach * (rate + dispersion * rate))


def tensors(*arrays):
    return [torch.as_tensor(np.asarray(array, dtype=np.float64)) for array in arrays]


def probabilities(name, rate, dispersion):
    y = values(name, rate, dispersion)
    return y, np.exp(COUNTS[name].log_density(*tensors(y, rate, dispersion)).numpy())


def each(*, dispersions=DISPERSIONS):
    """Every unit at every dispersion, or those without a dispersion of their own at zero alone."""
    return pytest.mark.parametrize(("name", "dispersion"), [(name, phi) for name in NAMES for phi in dispersions(name)])


def any_dispersion(_name):
    return DISPERSIONS


def own_dispersion(name):
    """Scores and weights are of the fit, in which only a learned dispersion exists."""
    return DISPERSIONS if COUNTS[name].LEARNS_DISPERSION else (0.0,)


@each(dispersions=any_dispersion)
def test_probabilities_sum_to_one(name, dispersion):
    for rate in RATES:
        _, p = probabilities(name, rate, dispersion)
        assert p.sum() == pytest.approx(1, abs=2e-6 if dispersion <= 1e-8 else 1e-10)


@each(dispersions=any_dispersion)
def test_log_density_is_scipys(name, dispersion):
    unit = COUNTS[name]
    for rate in RATES:
        y = np.arange(2.0) if unit.MAXIMUM else np.arange(12 * np.sqrt(rate) + rate + 20)
        found = unit.log_density(*tensors(y, rate, dispersion))
        assert found.dtype == torch.float64
        # at the least dispersion, a difference of log gammas of 1e8 has six digits, and y^2 phi is not quite nothing
        close = {"rtol": 1e-5, "atol": 2e-6} if dispersion <= 1e-8 else {"rtol": 1e-9, "atol": 1e-9}
        np.testing.assert_allclose(found, log_reference(name, y, rate, dispersion), **close)


@pytest.mark.parametrize("name", NAMES)
def test_log_density_broadcasts_and_is_float64(name):
    y, rate = torch.tensor([[0.0], [1.0]]), torch.tensor([0.5, 2.0, 9.0])
    found = COUNTS[name].log_density(y, rate, torch.tensor(0.7))
    assert found.shape == (2, 3)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found[1], log_reference(name, np.ones(3), rate.numpy(), 0.7), rtol=1e-6)


@each(dispersions=any_dispersion)
def test_log_zero(name, dispersion):
    unit = COUNTS[name]
    for dtype in (torch.float32, torch.float64):
        rate, phi = torch.as_tensor(RATES, dtype=dtype), torch.tensor(dispersion, dtype=dtype)
        found = unit.log_zero(rate, phi)
        assert found.dtype == dtype
        expected = [reference(r, dispersion).logpmf(0) for r in RATES]
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@each(dispersions=own_dispersion)
def test_score_is_the_derivative_of_the_log_density(name, dispersion):
    unit = COUNTS[name]
    phi = torch.tensor(dispersion, dtype=torch.float64)
    for rate in RATES:
        (y,) = tensors(values(name, rate, dispersion)[:200])
        eta = torch.full_like(y, np.log(rate)).requires_grad_()
        (expected,) = torch.autograd.grad(unit.log_density(y, eta.exp(), phi).sum(), eta)
        _, score = unit.weight_and_score(y, torch.full_like(y, rate), phi)
        torch.testing.assert_close(score, expected, rtol=1e-5, atol=1e-9)


@each(dispersions=own_dispersion)
def test_fisher_weight_is_the_mean_square_of_the_score(name, dispersion):
    unit = COUNTS[name]
    for rate in RATES:
        y, p = probabilities(name, rate, dispersion)
        arguments = tensors(y, np.full_like(y, rate), dispersion)
        weight, score = unit.weight_and_score(*arguments)
        assert float(weight[0]) == pytest.approx(p @ score.numpy() ** 2, rel=1e-5)
        assert p @ score.numpy() == pytest.approx(0, abs=1e-5 * rate)
        torch.testing.assert_close(unit.fisher_weight(*arguments[1:]), weight.expand(len(y)))


@pytest.mark.parametrize("name", NAMES)
def test_blocks_of_cells_and_genes(name):
    """As inference calls it: rates (cells, genes) in float32, a dispersion for each gene; the arguments stay."""
    unit, generator = COUNTS[name], np.random.default_rng(0)
    y = torch.from_numpy(generator.poisson(1.0, (5, 3)).clip(0, unit.MAXIMUM)).float()
    rate = torch.from_numpy(generator.gamma(1.0, 2.0, (5, 3))).float()
    phi = torch.tensor([0.0, 0.3, 4.0]) if unit.LEARNS_DISPERSION else torch.zeros(3)
    kept = [part.clone() for part in (y, rate, phi)]
    weight, score = unit.weight_and_score(y, rate, phi)
    assert all(torch.equal(*pair) for pair in zip(kept, (y, rate, phi), strict=True))
    assert weight.dtype == score.dtype == torch.float32
    for i, j in np.ndindex(5, 3):
        one = unit.weight_and_score(*(part.double() for part in (y[i, j], rate[i, j], phi[j])))
        np.testing.assert_allclose((weight[i, j], score[i, j]), one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_extreme_rates_stay_finite_in_float32(name):
    """From e^-60 to the e^30 that rates are held at."""
    unit = COUNTS[name]
    rate = torch.linspace(-60, 30, 181).exp()
    for y in (0.0, 1.0):
        weight, score = unit.weight_and_score(torch.full_like(rate, y), rate, torch.zeros(()))
        assert torch.isfinite(weight).all()
        assert torch.isfinite(score).all()
        assert (weight >= 0).all()
    # far down, a value says what the first count of a Poisson would
    torch.testing.assert_close(weight[:80], rate[:80])
    torch.testing.assert_close(score[:80], torch.ones(80))


@each(dispersions=any_dispersion)
def test_mean_and_variance(name, dispersion):
    unit = COUNTS[name]
    for rate in RATES:
        y, p = probabilities(name, rate, dispersion)
        mean, var = unit.mean(*tensors(rate, dispersion)), unit.variance(*tensors(rate, dispersion))
        assert float(mean) == pytest.approx(p @ y, rel=1e-5)
        assert float(var) == pytest.approx(p @ (y - float(mean)) ** 2, rel=1e-5)


@each(dispersions=any_dispersion)
def test_draws_have_that_mean_and_variance(name, dispersion):
    unit, n = COUNTS[name], 40_000
    draws = unit.sample(np.tile(RATES[1:], (n, 1)), np.float64(dispersion), np.random.default_rng(1))
    assert draws.shape == (n, 4)
    assert np.issubdtype(draws.dtype, np.integer)
    assert draws.min() >= 0
    assert draws.max() <= (unit.MAXIMUM or np.inf)
    for rate, column in zip(RATES[1:], draws.T, strict=True):
        y, p = probabilities(name, rate, dispersion)
        mean = p @ y
        var, fourth = p @ (y - mean) ** 2, p @ (y - mean) ** 4
        assert column.mean() == pytest.approx(mean, abs=5 * np.sqrt(var / n))
        assert ((column - mean) ** 2).mean() == pytest.approx(var, abs=5 * np.sqrt((fourth - var**2) / n) + 1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_draws_broadcast_and_repeat(name):
    rate, phi = np.array([[0.5], [4.0]]), np.array([0.0, 0.5, 3.0])
    draws = [COUNTS[name].sample(rate, phi, np.random.default_rng(seed)) for seed in (3, 3)]
    assert draws[0].shape == (2, 3)
    np.testing.assert_array_equal(*draws)


@each(dispersions=any_dispersion)
def test_tails_are_sums_of_probabilities(name, dispersion):
    """Upper and lower, down to less than 1e-30."""
    unit, least = COUNTS[name], 1.0
    for rate in (*RATES, 75.0):
        y = values(name, rate, dispersion, reach=160)
        p = np.exp(log_reference(name, y, rate, dispersion))
        upper, lower = p[::-1].cumsum()[::-1], p.cumsum()
        some = np.unique(np.geomspace(1, len(y), 60).astype(int)) - 1
        some = some[(upper[some] > 1e-250) & (y[some] < len(y) / 2 + 1)]
        close = {"rtol": 2e-3 if dispersion <= 1e-8 else 1e-6, "atol": 0}
        np.testing.assert_allclose(unit.upper_tail(y[some], rate, dispersion), upper[some], **close)
        np.testing.assert_allclose(unit.lower_tail(y[some], rate, dispersion), lower[some], **close)
        least = min(least, upper[some].min(), lower[some].min())
    assert least < 1e-30 or (unit.MAXIMUM and dispersion > 0)


@pytest.mark.parametrize("name", NAMES)
def test_tails_of_each_value_leave_out_nothing(name):
    y, rate, phi = np.array([-1, 0, 1]), np.array([[0.3], [5.0]]), 0.4
    upper, below = COUNTS[name].upper_tail(y, rate, phi), COUNTS[name].lower_tail(y - 1, rate, phi)
    assert upper.shape == (2, 3)
    np.testing.assert_allclose(upper + below, 1, rtol=1e-12)
    np.testing.assert_array_equal(upper[:, :2], 1)


# the table: a unit is a file and a line


def public_functions(unit):
    return {
        name: inspect.signature(value)
        for name, value in vars(unit).items()
        if isinstance(value, FunctionType) and not name.startswith("_")
    }


@pytest.mark.parametrize("name", NAMES)
def test_every_unit_has_the_same_functions_and_facts(name):
    first, unit = COUNTS[NAMES[0]], COUNTS[name]
    functions = public_functions(unit)
    # a unit with a dispersion to learn has one function more
    assert (functions.pop("dispersion_score", None) is not None) == unit.LEARNS_DISPERSION
    shared = {key: value for key, value in public_functions(first).items() if key != "dispersion_score"}
    assert functions == shared
    assert set(functions) == {
        "fisher_weight",
        "log_density",
        "log_zero",
        "lower_tail",
        "mean",
        "sample",
        "upper_tail",
        "variance",
        "weight_and_score",
    }
    assert isinstance(unit.LEARNS_DISPERSION, bool)
    assert unit.MAXIMUM is None or unit.MAXIMUM >= 1
    assert isinstance(unit.VALUES, str)
    assert unit.LEAST_DISPERSION > 0
    assert unit.__name__ == f"scvi_lfm.model.likelihoods.{name}"


def test_the_table_has_a_line_for_each_file():
    folder = Path(inspect.getfile(COUNTS[NAMES[0]])).parent
    assert {path.stem for path in folder.glob("*.py")} == {"__init__", *CONTINUOUS, *NAMES}


def names_in(node):
    match node:
        case ast.Constant(value=str()):
            return {node.value}
        case ast.Attribute():
            return {node.attr} if getattr(node.value, "id", "") == "likelihoods" else set()
        case ast.ImportFrom():
            return {(node.module or "").split(".")[-1], *(alias.name for alias in node.names)}
    return set()


@pytest.mark.parametrize("room", ["data", "model", "posterior", "inference", "tl", "get.py", "pl"])
def test_no_other_file_knows_a_unit_by_name(room):
    """Inference and scoring know the table alone; what `likelihood="auto"` means and the Pyro program name units."""
    path = Path(lfm.__file__).parent / room
    for file in [path] if path.is_file() else path.rglob("*.py"):
        if file.parent.name == "likelihoods" or file.name in {"_fit_arguments.py", "program.py"}:
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            assert not set(NAMES) & names_in(node), f"{file}:{getattr(node, 'lineno', 0)}"


@pytest.mark.filterwarnings("ignore:The fit did not converge")
def test_a_unit_that_is_added_can_be_fitted_stored_and_read(monkeypatch):
    monkeypatch.setitem(COUNTS, "another", COUNTS["poisson"])
    monkeypatch.setattr("scvi_lfm.tl._fit_plan.LIKELIHOODS", ("poisson", "another"))
    adata = lfm.datasets.simulate(40, 30, 2)
    adata.X = np.random.default_rng(0).poisson(np.exp(adata.X.clip(-2, 2))).astype(np.float32)
    for name in ("poisson", "another"):
        lfm.tl.fit(adata, 2, likelihood=name, key_added=name, max_epochs=2, tol=1e6, progress=False)
    np.testing.assert_array_equal(adata.obsm["X_another"], adata.obsm["X_poisson"])
    assert read_fit(adata, "another").posterior.noise.likelihood == "another"
