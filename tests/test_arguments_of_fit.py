"""An argument of `tl.fit` is spelled in its signature, in the record and in the docs; the rest follows from these."""

from __future__ import annotations

import inspect
from dataclasses import fields, replace

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

import scvi_lfm as lfm
from scvi_lfm._cli._parser import build_parser
from scvi_lfm._fit_arguments import ARGUMENTS, CONTINUOUS, DEFAULTS, LIKELIHOODS, FitArguments
from scvi_lfm.inference import fit_natural_gradient
from scvi_lfm.model import likelihoods
from scvi_lfm.posterior import read_fit
from scvi_lfm.posterior.store.params import arguments_of, params_of


def test_the_record_has_the_arguments_of_the_signature():
    signature = inspect.signature(lfm.tl.fit).parameters
    assert {name: parameter.default for name, parameter in signature.items() if name != "adata"} == DEFAULTS
    annotations = {name: parameter.annotation for name, parameter in signature.items() if name != "adata"}
    assert annotations == inspect.get_annotations(FitArguments)


def test_the_choices_of_likelihoods_are_those_of_the_table():
    assert ("auto", *likelihoods.LIKELIHOODS) == LIKELIHOODS
    assert CONTINUOUS == likelihoods.CONTINUOUS


def test_what_an_argument_belongs_to_is_an_argument():
    for known in ARGUMENTS.values():
        if known.only is not None:
            name, serves = known.only
            assert set(serves) < set(ARGUMENTS[name].choices)
        assert known.choices == () or (known.minimum is None and not known.positive)


def test_the_docstring_names_every_choice_in_the_words_of_the_record():
    text = inspect.getdoc(lfm.tl.fit)
    assert not [word for known in ARGUMENTS.values() for word in known.choices if f'"{word}"' not in text]


def test_a_shell_may_ask_for_all_that_has_a_line_of_help():
    options = vars(build_parser().parse_args(["fit", "in", "out"]))
    asked = {name for name, known in ARGUMENTS.items() if known.help}
    others = {"command", "traceback", "data", "out", "force", "in_place", "results_only", "plan"}
    assert asked == set(options) - others
    assert {name: options[name] for name in asked} == {name: DEFAULTS[name] for name in asked}


GIVEN = FitArguments(
    n_factors=3,
    layer="counts",
    normalize=1e3,
    likelihood="student_t",
    noise="gene",
    observed="stored",
    held_out="test",
    covariates="odd",
    size_factors=np.ones(3),
    mask_var="chosen",
    family="mean_field",
    engine="pyro",
    guide=lambda: None,
    learning_rate=0.1,
    prior_scales={"a": 0.5, "A": [1.0, 2.0, 3.0]},
    batch_size=20,
    max_epochs=7,
    tol=0.5,
    device="cuda:0",
    rng=4,
)


def test_params_hold_every_argument_that_is_stored():
    params = params_of(GIVEN)
    assert set(params) == {name for name, known in ARGUMENTS.items() if known.stored}
    assert (params["guide"], params["size_factors"]) == ("callable", "array")
    np.testing.assert_array_equal(params["prior_scales"].pop("A"), [1, 2, 3])
    assert params["prior_scales"] == {"a": 0.5}
    assert list(params["covariates"]) == ["odd"]
    assert all(type(params[name]) is type(getattr(GIVEN, name)) for name, known in ARGUMENTS.items() if known.always)


def test_params_leave_out_what_says_nothing():
    given = replace(GIVEN, engine="natural_gradient", likelihood="poisson", rng=np.random.default_rng(0), layer=None)
    left = {"guide", "learning_rate", "noise", "rng", "layer"}
    assert set(params_of(given)) == set(params_of(GIVEN)) - left
    assert "prior_scales" not in params_of(replace(GIVEN, prior_scales={}))
    assert arguments_of(params_of(given), "lfm").rng is None


# all that `fit_of` can make differ in what params hold
FITS = [
    ("normal", {}),
    ("normal", {"noise": "cell_gene"}),
    ("normal", {"covariates": "odd"}),
    pytest.param("normal", {"held_out": "test"}, marks=pytest.mark.slow),
    ("normal", {"observed": "stored"}),
    ("negative_binomial", {}),
    pytest.param("ordinal", {"covariates": "odd"}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("likelihood", "options"), FITS, ids=str)
def test_every_stored_argument_is_read_back(fit_of, tmp_path, likelihood, options):
    """From a file too, which makes other types of some."""
    adata = fit_of(likelihood, **options)
    adata.write_h5ad(tmp_path / "fit.h5ad")
    params = adata.uns["lfm"]["params"]
    for fitted in (adata, ad.read_h5ad(tmp_path / "fit.h5ad")):
        given = read_fit(fitted, "lfm").arguments
        again = params_of(given)
        assert again.keys() == params.keys()
        for name, value in params.items():
            np.testing.assert_array_equal(again[name], value)
            assert isinstance(again[name], type(value))


@pytest.mark.parametrize("name", [name for name, known in ARGUMENTS.items() if known.always])
def test_an_argument_that_every_fit_has_is_missed(name):
    params = params_of(GIVEN)
    del params[name]
    with pytest.raises(KeyError, match=f"'mine'.* has no {name!r}"):
        arguments_of(params, "mine")


@pytest.mark.parametrize(("likelihood", "options"), FITS, ids=str)
def test_the_refit_has_the_options_and_values_of_the_fit(fit_of, monkeypatch, likelihood, options):
    """But for the seed, and for what lets it go on for longer."""
    adata, asked = fit_of(likelihood, **options), []

    def fit(matrix, options):
        asked.append((matrix, options))
        return fit_natural_gradient(matrix, options)

    monkeypatch.setattr("scvi_lfm.tl._fit.fit_natural_gradient", fit)
    monkeypatch.setattr("scvi_lfm.tl._check_convergence.fit_natural_gradient", fit)
    lfm.tl.fit(adata, 2, likelihood=likelihood, progress=False, **options)
    report = lfm.tl.check(adata)
    (values, first), (again, second) = asked
    changed = {each.name for each in fields(first) if not _same(getattr(first, each.name), getattr(second, each.name))}
    counts = likelihood != "normal"
    assert changed <= {"seed", "max_epochs", *(("batch_size",) if counts else ("tol",)), "log_size"}
    assert (first.batch_size, second.batch_size) == (40, 20 if counts else 40)
    assert first.log_size is None or np.allclose(first.log_size, second.log_size, atol=1e-6)
    epochs = adata.uns["lfm"]["elbo"]["epoch"][-1]
    assert second.max_epochs <= np.ceil(1.25 * epochs)
    np.testing.assert_array_equal(sp.csr_array(again.stored()).toarray(), sp.csr_array(values.stored()).toarray())
    assert again.n_observed == values.n_observed
    assert (again.held_out is not None) == ("held_out" in options)
    if "covariates" in options:
        np.testing.assert_allclose(again.covariates, values.covariates)
    # the seed that the report names gives the same fit
    assert second.seed == int(np.random.default_rng(report.convergence["seed"][1]).integers(2**31))


def _same(one, other):
    return type(one) is type(other) and not sp.issparse(one) and np.array_equal(one, other)
