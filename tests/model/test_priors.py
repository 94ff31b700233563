from __future__ import annotations

import numpy as np
import pytest
import torch

from scvi_lfm.model.priors import PriorScales, check_prior_scales, initial_scales, rotation_is_free


def tensor(*values):
    return torch.tensor(values[0] if len(values) == 1 else values, dtype=torch.float64)


def test_variances_line_up_with_the_blocks():
    scales = PriorScales(a=tensor(0.5), A=tensor(1.0, 2.0), b=tensor(3.0), B=tensor(0.1, 0.2))
    np.testing.assert_allclose(scales.cell_var, [0.25, 1, 4])
    np.testing.assert_allclose(scales.gene_var, [9, 0.01, 0.04])


def test_learned_scales_are_roots_of_mean_squares():
    start = PriorScales(a=tensor(1.0), A=tensor(1.0, 1.0), b=tensor(1.0), B=tensor(1.0, 1.0))
    scales = start.learned_from(tensor(0.09), tensor(4.0, 0.25, 0.0), tensor(1.0))
    assert float(scales.a) == pytest.approx(0.3)
    assert float(scales.b) == 2
    assert float(scales.B[0]) == 0.5
    # no longer there, and still a scale
    assert 0 < float(scales.B[1]) < 1e-5
    assert torch.equal(scales.A, start.A)


@pytest.mark.parametrize("fixed", ["a", "b", "B"])
def test_fixed_scales_are_not_learned(fixed):
    start = PriorScales(tensor(1.0), tensor(1.0, 1.0), tensor(1.0), tensor(1.0, 1.0), frozenset({fixed}))
    scales = start.learned_from(tensor(0.09), tensor(4.0, 0.25, 0.25), tensor(1.0))
    for name in ("a", "b", "B"):
        assert torch.equal(getattr(scales, name), getattr(start, name)) == (name == fixed)


@pytest.mark.parametrize(
    ("given", "name", "expected"),
    [
        ({}, "A", [1, 1, 1]),
        ({}, "B", [0.7, 0.7, 0.7]),
        ({}, "a", 0.7),
        ({"a": 2}, "a", 2),
        ({"b": 0.2}, "b", 0.2),
        ({"A": 0.5}, "A", [0.5, 0.5, 0.5]),
        ({"B": [3, 2, 1]}, "B", [3, 2, 1]),
        ({"B": np.array([3.0, 2, 1])}, "B", [3, 2, 1]),
    ],
)
def test_initial_scales_are_the_given_ones_or_the_spread_of_the_data(given, name, expected):
    scales = initial_scales(3, given, tensor(0.7))
    values = getattr(scales, name)
    assert values.dtype == torch.float64
    np.testing.assert_allclose(values, expected)
    assert scales.fixed == set(given)


@pytest.mark.parametrize(("n_factors", "expected"), [(0, []), (5, [2.0] * 5)])
def test_initial_scales_of_another_number_of_factors(n_factors, expected):
    """None for the margins alone; more where factors are drawn beyond those asked for, which all scales alike allow."""
    scales = initial_scales(n_factors, {"A": [2.0, 2, 2], "B": 2.0}, tensor(0.7))
    assert scales.A.tolist() == scales.B.tolist() == expected


@pytest.mark.parametrize(
    ("given", "free"),
    [
        ({}, True),
        ({"a": 0.3, "sigma": 1.0}, True),
        ({"A": 0.5}, True),
        ({"A": [2.0, 2.0]}, True),
        ({"A": [1.0, 2.0]}, False),
        ({"B": 1.0}, False),
        ({"B": [1.0, 2.0]}, False),
    ],
)
def test_rotation_is_free_only_where_the_prior_allows(given, free):
    assert rotation_is_free(given) is free


@pytest.mark.parametrize(
    "given",
    [None, {}, {"a": 1}, {"sigma": 0.5}, {"A": 2.0}, {"A": [1.0, 2.0]}, {"B": np.array([1, 2])}, {"b": np.float32(1)},
     {"B": np.float32(0.5)}, {"B": (1.0, 2.0)}],
)  # fmt: skip
def test_good_scales_pass(given):
    assert set(check_prior_scales(given, 2)) == set(given or {})


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ([1.0], TypeError, r"`prior_scales` must be a dict such as .*, found list"),
        ({"kappa": 1.0}, ValueError, r"no scale 'kappa'; the scales are 'a', 'A', 'b', 'B', 'sigma'"),
        ({"a": 0}, ValueError, r"`prior_scales\['a'\]` must be above 0, found 0"),
        ({"a": -1.0}, ValueError, r"`prior_scales\['a'\]` must be above 0, found -1\.0"),
        ({"sigma": np.nan}, ValueError, r"`prior_scales\['sigma'\]` must be above 0, found nan"),
        ({"b": "1"}, TypeError, r"`prior_scales\['b'\]` must be a number, found '1' of type str"),
        ({"b": True}, TypeError, r"`prior_scales\['b'\]` must be a number, found True"),
        ({"a": [1.0, 2.0]}, TypeError, r"`prior_scales\['a'\]` must be a number, found \[1\.0, 2\.0\]"),
        ({"A": [1.0, 2.0, 3.0]}, ValueError, r"`prior_scales\['A'\]` must be one positive number or one for each of 2"),
        ({"B": [1.0, 0.0]}, ValueError, r"`prior_scales\['B'\]` must be one positive number or one for each of 2"),
        ({"B": [1.0, np.inf]}, ValueError, r"`prior_scales\['B'\]` must be one positive number or one for each of 2"),
        ({"A": "wide"}, TypeError, r"`prior_scales\['A'\]` must be a number, found 'wide'"),
        ({"A": ["1", "2"]}, TypeError, r"`prior_scales\['A'\]`"),
    ],
)
def test_wrong_scales_are_named(given, error, message):
    with pytest.raises(error, match=message):
        check_prior_scales(given, 2)
