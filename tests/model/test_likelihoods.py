"""What every likelihood promises, against scipy, sums or integrals over all values, and derivatives."""

from __future__ import annotations

import ast
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from scipy.stats import nbinom, norm, poisson
from scipy.stats import t as student

import scvi_lfm as lfm
from scvi_lfm._fit_arguments import ARGUMENTS
from scvi_lfm.model.likelihoods import COUNTS, LIKELIHOODS, negative_binomial
from scvi_lfm.posterior import read_fit

if TYPE_CHECKING:
    from collections.abc import Callable

RATES = (1e-3, 0.05, 1.0, 7.0, 60.0)
ETAS = (-30.0, -1.0, 0.0, 2.5)
# those below 1e-8 are taken as Poisson's
DISPERSIONS = ((0.0,), (1e-8,), (1e-3,), (0.3,), (2.0,), (50.0,))


def counts(rate, dispersion):
    return nbinom(1 / dispersion, 1 / (1 + dispersion * rate)) if dispersion > 1e-8 else poisson(rate)


class Presence:
    """Whether a count is zero, in the digits of logs."""

    def __init__(self, rate, dispersion):
        self.log = np.array([counts(rate, dispersion).logpmf(0), counts(rate, dispersion).logsf(0)])

    def logpmf(self, y):
        return self.log[np.asarray(y, dtype=int)]

    def logsf(self, y):
        return np.where(y < 0, 0.0, np.where(y < 1, self.log[1], -np.inf))

    def logcdf(self, y):
        return np.where(y < 0, -np.inf, np.where(y < 1, self.log[0], 0.0))


class Levels:
    """Levels 2, 3, ..., by differences of distribution functions."""

    def __init__(self, eta, scale, lowest, *thresholds):
        x = (np.array([-np.inf, *thresholds, np.inf]) - eta) / scale
        # from the side on which the tail is
        p = np.where(x[1:] < 0, norm.cdf(x[1:]) - norm.cdf(x[:-1]), norm.sf(x[:-1]) - norm.sf(x[1:]))
        self.lowest, self.p = lowest, p

    def _place(self, level, least):
        return np.clip(np.asarray(level, dtype=int), least, len(self.p))

    def logpmf(self, y):
        with np.errstate(divide="ignore"):
            return np.log(
                np.concatenate([self.p, [0.0, 0.0]])[np.clip(np.asarray(y - self.lowest, int), -1, len(self.p))]
            )

    def logsf(self, y):
        with np.errstate(divide="ignore"):
            beyond = np.concatenate([[1.0], self.p[::-1].cumsum()[::-1][1:], [0.0]])
            return np.log(beyond[self._place(y - self.lowest + 1, 0)])

    def logcdf(self, y):
        with np.errstate(divide="ignore"):
            return np.log(
                np.concatenate([[0.0], self.p.cumsum()])[np.clip(np.asarray(y - self.lowest, int) + 1, 0, len(self.p))]
            )


@dataclass(frozen=True)
class Case:
    """Where a likelihood is tried, and the same of scipy's."""

    reference: Callable
    seen: tuple[float, ...]
    parameters: tuple[tuple[float, ...], ...]
    fitted: tuple[tuple[float, ...], ...] | None = None  # parameters that a fit may have; None: all of them
    support: tuple[float, ...] | None = None  # all values, where they are few


# a new likelihood is tested by a line here
CASES = {
    "normal": Case(lambda eta, var: norm(eta, np.sqrt(var)), ETAS, ((0.04,), (4.0,))),
    "student_t": Case(lambda eta, sigma, df: student(df, eta, sigma), ETAS, ((0.2, 9.0), (2.0, 30.0))),
    "poisson": Case(counts, RATES, DISPERSIONS, ((0.0,),)),
    "negative_binomial": Case(counts, RATES, DISPERSIONS),
    "bernoulli": Case(Presence, RATES, DISPERSIONS, ((0.0,),), (0.0, 1.0)),
    "ordinal": Case(
        Levels,
        (-4.0, -0.3, 0.8, 3.0),
        ((1.0, 2.0, -1.2, 0.1, 0.7), (1.6, 2.0, 0.4, 0.9, 3.0)),
        ((1.0, 2.0, -1.2, 0.1, 0.7),),
        (2.0, 3.0, 4.0, 5.0),
    ),
}
NAMES = tuple(CASES)
each = pytest.mark.parametrize(("name", "parameters"), [(name, of) for name in NAMES for of in CASES[name].parameters])
each_fitted = pytest.mark.parametrize(
    ("name", "parameters"), [(name, of) for name in NAMES for of in CASES[name].fitted or CASES[name].parameters]
)


def is_whole(name):
    return not LIKELIHOODS[name].linear


def values(name, seen, parameters, *, reach=60):
    """Values that are likely enough to matter, and the weight of each in a sum, or in an integral, over all of them."""
    if not is_whole(name):
        # far out by powers, for tails that are heavy; the scale of each is at most 2
        s = np.linspace(-40, 40, 40_001)
        return seen + 0.1 * np.sinh(s), 0.1 * np.cosh(s) * (s[1] - s[0])
    if CASES[name].support is not None:
        return np.array(CASES[name].support), 1.0
    # each `1 + dispersion rate` take one more nat
    return np.arange(100 + reach * (seen + parameters[0] * seen)), 1.0


def tensors(*arrays):
    return [torch.as_tensor(np.asarray(array, dtype=np.float64)) for array in arrays]


def log_reference(name, y, seen, parameters):
    law = CASES[name].reference(seen, *parameters)
    return law.logpmf(y) if is_whole(name) else law.logpdf(y)


def probabilities(name, seen, parameters):
    y, weight = values(name, seen, parameters)
    return y, np.exp(LIKELIHOODS[name].log_density(*tensors(y, seen, *parameters)).numpy()) * weight


def least_digits(name, parameters):
    """At the least dispersion, a difference of log gammas of 1e8 has six digits, and y^2 phi is not quite nothing."""
    return LIKELIHOODS[name].has_rate and parameters[0] <= 1e-8


def test_every_likelihood_is_tried():
    assert tuple(LIKELIHOODS) == NAMES


class TestLikelihood:
    """The contract of the record."""

    @each
    def test_probabilities_sum_to_one(self, name, parameters):
        for seen in CASES[name].seen:
            _, p = probabilities(name, seen, parameters)
            assert p.sum() == pytest.approx(1, abs=2e-6 if least_digits(name, parameters) else 1e-10)

    @each
    def test_log_density_is_scipys(self, name, parameters):
        for seen in CASES[name].seen:
            y, _ = values(name, seen, parameters)
            y = y[: int(12 * np.sqrt(max(seen, 0)) + max(seen, 0) + 20)] if is_whole(name) else y[np.abs(y - seen) < 50]
            found = LIKELIHOODS[name].log_density(*tensors(y, seen, *parameters))
            close = {"rtol": 1e-5, "atol": 2e-6} if least_digits(name, parameters) else {"rtol": 1e-9, "atol": 1e-9}
            np.testing.assert_allclose(found, log_reference(name, y, seen, parameters), **close)

    @pytest.mark.parametrize(("name", "parameters"), [(name, of) for name in COUNTS for of in CASES[name].parameters])
    def test_log_zero_of_counts(self, name, parameters):
        for dtype in (torch.float32, torch.float64):
            seen, *rest = (torch.as_tensor(part, dtype=dtype) for part in (CASES[name].seen, *parameters))
            found = negative_binomial.log_zero(seen, *rest)
            assert found.dtype == dtype
            expected = [log_reference(name, 0, at, parameters) for at in CASES[name].seen]
            np.testing.assert_allclose(found, expected, rtol=1e-6)

    @each_fitted
    def test_score_is_the_derivative_of_the_log_density(self, name, parameters):
        likelihood = LIKELIHOODS[name]
        for seen in CASES[name].seen:
            y, *rest = tensors(values(name, seen, parameters)[0][:: 1 if is_whole(name) else 199][:202], *parameters)
            eta = torch.full_like(y, np.log(seen) if likelihood.has_rate else seen).requires_grad_()
            density = likelihood.log_density(y, eta.exp() if likelihood.has_rate else eta, *rest)
            (expected,) = torch.autograd.grad(density.sum(), eta)
            _, score = likelihood.weight_and_score(y, torch.full_like(y, seen), *rest)
            torch.testing.assert_close(score, expected, rtol=1e-5, atol=1e-9)

    @each_fitted
    def test_fisher_weight_is_the_mean_square_of_the_score(self, name, parameters):
        likelihood = LIKELIHOODS[name]
        for seen in CASES[name].seen:
            y, p = probabilities(name, seen, parameters)
            arguments = tensors(y, np.full_like(y, seen), *parameters)
            weight, score = likelihood.weight_and_score(*arguments)
            assert float(weight.flatten()[0]) == pytest.approx(p @ score.numpy() ** 2, rel=1e-5)
            assert p @ score.numpy() == pytest.approx(0, abs=1e-5 * abs(seen) + 1e-9)
            torch.testing.assert_close(weight.expand(len(y)), weight.flatten()[:1].expand(len(y)))

    @pytest.mark.parametrize("name", NAMES)
    def test_blocks_of_cells_and_genes(self, name):
        """As inference calls it: eta or rates (cells, genes) in float32, parameters of each gene; arguments stay."""
        likelihood, generator = LIKELIHOODS[name], np.random.default_rng(0)
        most = np.inf if likelihood.maximum is None else likelihood.maximum
        y = torch.from_numpy(generator.poisson(1.0, (5, 3)).clip(max=most)).float()
        seen = torch.from_numpy(generator.gamma(1.0, 2.0, (5, 3))).float()
        of_fit = CASES[name].fitted or CASES[name].parameters
        parameters = [torch.tensor(column)[[0, -1, 0]] for column in zip(*of_fit, strict=True)]
        kept = [part.clone() for part in (y, seen, *parameters)]
        weight, score = likelihood.weight_and_score(y, seen, *parameters)
        assert all(torch.equal(*pair) for pair in zip(kept, (y, seen, *parameters), strict=True))
        assert weight.dtype == score.dtype == torch.float32
        weight = weight.expand(5, 3)
        for i, j in np.ndindex(5, 3):
            one = (part.double() for part in (y[i, j], seen[i, j], *(part[j] for part in parameters)))
            np.testing.assert_allclose(
                (weight[i, j], score[i, j]), likelihood.weight_and_score(*one), rtol=1e-5, atol=1e-6
            )

    @each
    def test_mean_and_variance(self, name, parameters):
        likelihood = LIKELIHOODS[name]
        for seen in CASES[name].seen:
            y, p = probabilities(name, seen, parameters)
            mean, var = (float(of(*tensors(seen, *parameters))) for of in (likelihood.mean, likelihood.variance))
            assert mean == pytest.approx(p @ y, rel=1e-5, abs=1e-9)
            assert var == pytest.approx(p @ (y - mean) ** 2, rel=1e-5)

    @each
    def test_draws_have_that_mean_and_variance(self, name, parameters):
        likelihood, n = LIKELIHOODS[name], 40_000
        seen = np.array(CASES[name].seen[1:])
        draws = likelihood.sample(np.tile(seen, (n, 1)), *map(np.float64, parameters), np.random.default_rng(1))
        assert draws.shape == (n, len(seen))
        if is_whole(name):
            assert np.issubdtype(draws.dtype, np.integer)
            assert draws.min() >= 0
        assert draws.max() <= (likelihood.maximum or np.inf)
        for at, column in zip(seen, draws.T, strict=True):
            y, p = probabilities(name, at, parameters)
            mean = p @ y
            var, fourth = p @ (y - mean) ** 2, p @ (y - mean) ** 4
            assert column.mean() == pytest.approx(mean, abs=5 * np.sqrt(var / n))
            assert ((column - mean) ** 2).mean() == pytest.approx(var, abs=5 * np.sqrt((fourth - var**2) / n) + 1e-6)

    @pytest.mark.parametrize("name", NAMES)
    def test_draws_broadcast_and_repeat(self, name):
        parameters = [np.array(column)[[0, -1, 0]] for column in zip(*CASES[name].parameters, strict=True)]
        seen = np.array([[0.5], [4.0]])
        draws = [LIKELIHOODS[name].sample(seen, *parameters, np.random.default_rng(seed)) for seed in (3, 3)]
        assert draws[0].shape == (2, 3)
        np.testing.assert_array_equal(*draws)

    @each
    def test_tails_are_scipys_far_out(self, name, parameters):
        """Upper and lower, down to less than 1e-30."""
        likelihood, least = LIKELIHOODS[name], 1.0
        whole = is_whole(name)
        for seen in (*CASES[name].seen, 75.0):
            law = CASES[name].reference(seen, *parameters)
            y, _ = values(name, seen, parameters, reach=160)
            y = y[np.unique(np.geomspace(1, len(y), 60).astype(int)) - 1] if whole else y[::100]
            upper, lower = np.exp(law.logsf(y - 1 if whole else y)), np.exp(law.logcdf(y))
            # those that scipy can still tell from none
            some = (upper > 1e-250) & (lower > 1e-250)
            close = {"rtol": 2e-3 if least_digits(name, parameters) else 1e-6, "atol": 0}
            arguments = tensors(y[some], seen, *parameters)
            np.testing.assert_allclose(likelihood.upper_tail(*arguments), upper[some], **close)
            np.testing.assert_allclose(likelihood.lower_tail(*arguments), lower[some], **close)
            least = min(least, upper[some].min(), lower[some].min())
        assert least < 1e-30 or (CASES[name].support and parameters[0] > 0)

    @each
    def test_tails_are_monotone_and_leave_out_nothing(self, name, parameters):
        likelihood, whole = LIKELIHOODS[name], is_whole(name)
        y, seen, *rest = tensors(np.arange(-1.0, 9.0), np.array(CASES[name].seen)[:, None], *parameters)
        upper, below = likelihood.upper_tail(y, seen, *rest), likelihood.lower_tail(y - int(whole), seen, *rest)
        assert upper.shape == below.shape == (len(seen), 10)
        np.testing.assert_allclose(upper + below, 1, rtol=1e-6 if least_digits(name, parameters) else 1e-12)
        rounding = torch.finfo(upper.dtype).eps
        assert (upper.diff(dim=1) <= rounding * upper[:, :-1]).all()
        assert (below.diff(dim=1) >= -rounding * below[:, :-1]).all()
        if whole:
            np.testing.assert_array_equal(upper[:, :2], 1)


def uncertain(name, parameters, var):
    """Means of eta where the likelihood is tried, and its laws there."""
    seen = np.array(CASES[name].seen)
    mean = np.log(seen) if LIKELIHOODS[name].has_rate else seen
    return mean, LIKELIHOODS[name].law(*tensors(mean, np.full_like(mean, var)), *tensors(*parameters))


@pytest.mark.half_slow
class TestLaw:
    """The contract of laws of values whose eta is uncertain."""

    @each_fitted
    def test_eta_that_is_known_leaves_the_likelihood(self, name, parameters):
        likelihood, (_, law) = LIKELIHOODS[name], uncertain(name, parameters, 0.0)
        y, seen, *rest = tensors(np.ones(len(CASES[name].seen)), CASES[name].seen, *parameters)
        close = {"rtol": 1e-5, "atol": 1e-6}
        torch.testing.assert_close(law.log_density(y), likelihood.log_density(y, seen, *rest), **close)
        torch.testing.assert_close(law.upper_tail(y), likelihood.upper_tail(y, seen, *rest), **close)
        torch.testing.assert_close(law.lower_tail(y), likelihood.lower_tail(y, seen, *rest), **close)
        at_zero = likelihood.log_density(torch.zeros_like(seen), seen, *rest)
        torch.testing.assert_close(law.log_zero(), at_zero, **close)

    @each_fitted
    @pytest.mark.parametrize("var", [0.01, 0.5])
    def test_moments_are_those_of_the_mixture(self, name, parameters, var):
        """E y = E E[y | eta], and the variance of y is the mean of var(y | eta) plus the variance of E[y | eta]."""
        likelihood, (mean, law) = LIKELIHOODS[name], uncertain(name, parameters, var)
        z, weight = np.polynomial.hermite_e.hermegauss(60)
        eta = mean[:, None] + np.sqrt(var) * z
        given = tensors(np.exp(eta) if likelihood.has_rate else eta, *parameters)
        weight = torch.from_numpy(weight / weight.sum())
        first = (likelihood.mean(*given).expand(eta.shape) * weight).sum(1)
        spread = likelihood.variance(*given) + (likelihood.mean(*given) - first[:, None]).square()
        torch.testing.assert_close(law.mean(), first, rtol=2e-3, atol=1e-9)
        torch.testing.assert_close(law.variance(), (spread * weight).sum(1), rtol=4e-3, atol=1e-9)

    @each_fitted
    def test_quantiles_are_the_least_that_hold_the_level(self, name, parameters):
        _, law = uncertain(name, parameters, 0.3)
        for level in (0.1, 0.9):
            at = torch.from_numpy(law.quantile(level))
            close = 0.0 if is_whole(name) else 1e-4
            assert (law.lower_tail(at) >= level - close).all()
            assert (law.lower_tail(at - (1 if is_whole(name) else 1e-2)) < level).all()

    @each_fitted
    def test_transforms_lie_between_the_tails_and_are_uniform_where_the_law_is_right(self, name, parameters):
        n = 300
        seen = np.repeat(CASES[name].seen, n)
        drawn = LIKELIHOODS[name].sample(seen, *map(np.float64, parameters), np.random.default_rng(0))
        law = uncertain(name, parameters, 0.0)[1].at(torch.arange(len(CASES[name].seen)).repeat_interleave(n))
        y = torch.from_numpy(drawn).double()
        transform = law.transform(y, torch.Generator().manual_seed(0))
        assert (transform <= law.lower_tail(y) + 1e-5).all()
        assert (transform >= 1 - law.upper_tail(y) - 1e-5).all()
        transform = transform.view(-1, n)
        # five standard deviations of the mean of uniforms, and of their squares
        np.testing.assert_allclose(transform.mean(1), 1 / 2, atol=5 * np.sqrt(1 / 12 / n))
        np.testing.assert_allclose(transform.square().mean(1), 1 / 3, atol=5 * np.sqrt(4 / 45 / n))

    @each_fitted
    def test_some_of_the_entries(self, name, parameters):
        _, law = uncertain(name, parameters, 0.3)
        index = torch.tensor([2, 0])
        part = law.at(index)
        torch.testing.assert_close(part.mean(), law.mean()[index])
        torch.testing.assert_close(part.variance().expand(2), law.variance().expand(len(law.mean()))[index])
        np.testing.assert_allclose(part.quantile(0.7), law.quantile(0.7)[index], rtol=1e-4, atol=1e-4)


# of counts alone


@pytest.mark.parametrize("name", COUNTS)
def test_log_density_of_counts_broadcasts_and_is_float64(name):
    y, rate = torch.tensor([[0.0], [1.0]]), torch.tensor([0.5, 2.0, 9.0])
    found = COUNTS[name].log_density(y, rate, torch.tensor(0.7))
    assert found.shape == (2, 3)
    assert found.dtype == torch.float64
    expected = [log_reference(name, 1, float(at), (0.7,)) for at in rate]
    np.testing.assert_allclose(found[1], expected, rtol=1e-6)


@pytest.mark.parametrize("name", COUNTS)
def test_extreme_rates_stay_finite_in_float32(name):
    """From e^-60 to the e^30 that rates are held at."""
    rate = torch.linspace(-60, 30, 181).exp()
    for y in (0.0, 1.0):
        weight, score = COUNTS[name].weight_and_score(torch.full_like(rate, y), rate, torch.zeros(()))
        assert torch.isfinite(weight).all()
        assert torch.isfinite(score).all()
        assert (weight >= 0).all()
    # far down, a value says what the first count of a Poisson would
    torch.testing.assert_close(weight[:80], rate[:80])
    torch.testing.assert_close(score[:80], torch.ones(80))


# the table: a likelihood is a file and a line


@pytest.mark.parametrize("name", NAMES)
def test_the_table_says_what_lies_where(name):
    likelihood = LIKELIHOODS[name]
    assert likelihood.name == name
    assert (Path(lfm.model.likelihoods.__file__).parent / f"{name}.py").exists()
    assert (name in COUNTS) == likelihood.has_rate
    assert (name in lfm.model.likelihoods.CONTINUOUS) == likelihood.linear
    assert likelihood.maximum is None or likelihood.maximum >= 1


def test_the_table_has_a_line_for_each_file():
    folder = Path(lfm.model.likelihoods.__file__).parent
    assert {path.stem for path in folder.glob("*.py")} == {"__init__", "base", *NAMES}


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
def test_no_other_file_knows_a_count_likelihood_by_name(room):
    """Inference and scoring know the table alone; what `likelihood="auto"` means and the Pyro program name them."""
    path = Path(lfm.__file__).parent / room
    for file in [path] if path.is_file() else path.rglob("*.py"):
        if file.parent.name == "likelihoods" or file.name in {"_fit_checks.py", "program.py"}:
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            assert not set(COUNTS) & names_in(node), f"{file}:{getattr(node, 'lineno', 0)}"


@pytest.mark.parametrize("room", ["posterior", "tl"])
def test_tools_ask_no_posterior_for_its_class(room):
    """Nor its likelihood for its group: the record says what there is to know. Reading, writing and planning know."""
    for file in (Path(lfm.__file__).parent / room).rglob("*.py"):
        if "store" in file.parts or file.name.startswith(("_fit", "_plan")):
            continue
        nodes = tuple(ast.walk(ast.parse(file.read_text())))
        assert not {node.id for node in nodes if isinstance(node, ast.Name)} & {"CONTINUOUS", "COUNTS"}, file
        for node in nodes:
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance":
                kinds = {part.id for part in ast.walk(node.args[1]) if isinstance(part, ast.Name)}
                assert not kinds & {"CountPosterior", "NormalPosterior", "CountNoise", "NormalNoise"}, file


@pytest.mark.filterwarnings("ignore:The fit did not converge")
def test_a_unit_that_is_added_can_be_fitted_stored_and_read(monkeypatch):
    for table in (LIKELIHOODS, COUNTS):
        monkeypatch.setitem(table, "another", COUNTS["poisson"])
    argument = replace(ARGUMENTS["likelihood"], choices=("poisson", "another"))
    monkeypatch.setitem(ARGUMENTS, "likelihood", argument)
    adata = lfm.datasets.simulate(40, 30, 2)
    adata.X = np.random.default_rng(0).poisson(np.exp(adata.X.clip(-2, 2))).astype(np.float32)
    for name in ("poisson", "another"):
        lfm.tl.fit(adata, 2, likelihood=name, key_added=name, max_epochs=2, tol=1e6, progress=False)
    np.testing.assert_array_equal(adata.obsm["X_another"], adata.obsm["X_poisson"])
    assert read_fit(adata, "another").posterior.noise.likelihood == "another"
