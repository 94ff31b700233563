"""Names of arguments and of choices that other packages have: the error says which of ours was meant."""

from __future__ import annotations

import inspect
import pickle

import numpy as np
import pytest

import scvi_lfm as lfm
from scvi_lfm._calls import ELSEWHERE, HINTS, warn_user

PUBLIC = {
    f"{room}.{name}": getattr(getattr(lfm, room), name)
    for room in ("tl", "pl", "get", "datasets")
    for name in getattr(lfm, room).__all__
}


@pytest.mark.parametrize(
    ("name", "foreign", "meant"),
    [
        ("tl.fit", "n_comps", "Did you mean 'n_factors'?"),
        ("tl.fit", "n_latent", "Did you mean 'n_factors'?"),
        ("tl.fit", "random_state", "Did you mean 'rng'?"),
        ("tl.fit", "seed", "Did you mean 'rng'?"),
        ("tl.fit", "batch_key", "Did you mean 'covariates'?"),
        ("tl.fit", "batch", "Did you mean 'covariates'?"),
        ("tl.fit", "use_highly_variable", "Pass mask_var='highly_variable'"),
        ("tl.fit", "use_rep", "Did you mean 'layer'?"),
        ("tl.fit", "use_raw", "layers['raw'] = adata.raw[:, adata.var_names].X makes one"),
        ("tl.fit", "max_iter", "Did you mean 'max_epochs'?"),
        ("tl.fit", "use_gpu", "Did you mean 'device'?"),
        ("tl.fit", "verbose", "`progress` shows a bar, and scvi_lfm.settings.verbosity"),
        ("tl.fit", "inplace", "Pass copy=True"),
        ("tl.fit", "key", "Did you mean 'key_added'?"),
        ("tl.fit", "n_factor", "Did you mean 'n_factors'"),
        ("tl.fit", "Likelihood", "Did you mean 'likelihood'?"),
        ("tl.fit", "batchsize", "Did you mean 'batch_size'"),
        ("tl.anomalies", "use_rep", "Did you mean 'key'?"),
        ("tl.rank_genes", "group", "Did you mean 'groups'?"),
        ("tl.rank_genes", "rank_by", "Did you mean 'rankby'?"),
        ("tl.rank_genes", "sort_by", "Did you mean 'rankby'?"),
        ("tl.rank_genes", "n_genes", "There are: 'adata', 'groupby', "),
        ("tl.rank_cells", "gene", "Did you mean 'genes'?"),
        ("tl.similar_genes", "k", "Did you mean 'n_top'?"),
        ("tl.project", "adata_ref", "Did you mean 'reference'?"),
        ("tl.sample_posterior", "seed", "Did you mean 'rng'?"),
        ("get.rank_genes_df", "groups", "Did you mean 'group'?"),
        ("get.rank_genes_df", "pval_cutoff", "Did you mean 'max_lfsr'?"),
        ("pl.factors", "components", "Did you mean 'factors'?"),
        ("pl.rank_genes", "filename", "Did you mean 'save'?"),
        ("pl.rank", "axs", "Did you mean 'ax'?"),
        ("pl.elbo", "basis", "Did you mean 'key'?"),
        ("datasets.simulate", "n_obs", "Did you mean 'n_cells'?"),
        ("datasets.simulate", "random_state", "Did you mean 'rng'?"),
    ],
)
def test_a_wrong_name_is_answered_with_the_one_meant(name, foreign, meant):
    with pytest.raises(TypeError) as error:
        PUBLIC[name](None, **{foreign: 1})
    assert str(error.value).startswith(f"{name.split('.')[1]}() has no argument {foreign!r}. ")
    assert meant in str(error.value)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_function_names_its_arguments(name):
    with pytest.raises(TypeError, match=r"\(\) has no argument 'no_such_name'\. "):
        PUBLIC[name](no_such_name=1)
    parameters = inspect.signature(PUBLIC[name]).parameters.values()
    by_place = [parameter for parameter in parameters if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    with pytest.raises(TypeError, match=rf"takes {len(by_place)} argument\(s\) by place .* Pass the others by name"):
        PUBLIC[name](*(None for _ in range(len(by_place) + 1)))


@pytest.mark.parametrize("name", PUBLIC)
def test_the_function_stays_what_it_is(name):
    function = PUBLIC[name]
    assert function.__name__ == name.split(".")[1]
    assert str(inspect.signature(function)) == str(inspect.signature(inspect.unwrap(function)))
    assert pickle.loads(pickle.dumps(function)) is function


def test_the_table_names_arguments_that_exist():
    ours = {argument for function in PUBLIC.values() for argument in inspect.signature(function).parameters}
    assert set(ELSEWHERE) <= ours
    assert {needed for needed, _ in HINTS.values()} <= ours


def test_too_many_arguments_by_place():
    with pytest.raises(
        TypeError, match=r"fit\(\) takes 2 argument\(s\) by place \(adata, n_factors\), found 3\. .*layer="
    ):
        lfm.tl.fit(None, 2, "counts")


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("nb", "negative_binomial"),
        ("NB", "negative_binomial"),
        ("zinb", "negative_binomial"),
        ("Negative-Binomial", "negative_binomial"),
        ("gaussian", "normal"),
        ("Normal", "normal"),
        ("poison", "poisson"),
        ("binary", "bernoulli"),
    ],
)
@pytest.mark.parametrize("call", [lambda **options: lfm.tl.fit(SMALL, 2, **options), lfm.datasets.simulate])
def test_a_likelihood_by_another_name(call, given, meant):
    with pytest.raises(
        ValueError, match=rf"`likelihood` must be one of .*, found '{given}'\. Did you mean '{meant}'\?"
    ):
        call(likelihood=given)


SMALL = lfm.datasets.simulate(30, 20, 2)


def test_a_choice_that_is_like_none():
    with pytest.raises(ValueError, match=r"found 'zzz'\.$"):
        lfm.tl.fit(SMALL, 2, likelihood="zzz")


@pytest.fixture(scope="module")
def fit_of_ints():
    return lfm.tl.fit(SMALL, 2, batch_size=20, max_epochs=100, tol=0.2, rng=2, progress=False, copy=True)


@pytest.mark.parametrize("number", [2.0, np.int64(2), np.int8(2), np.float32(2), np.uint16(2)])
def test_whole_numbers_of_any_type(number, fit_of_ints):
    adata = lfm.tl.fit(
        SMALL, number, batch_size=number * 10, max_epochs=number * 50, tol=0.2, rng=number, progress=False, copy=True
    )
    np.testing.assert_array_equal(adata.obsm["X_lfm"], fit_of_ints.obsm["X_lfm"])
    assert {type(adata.uns["lfm"]["params"][name]) for name in ("n_factors", "batch_size", "max_epochs", "rng")} == {
        int
    }
    assert lfm.datasets.simulate(number, 3, number, rng=number).shape == (2, 3)
    assert len(lfm.tl.similar_genes(adata, "gene_0", n_top=number)) == 2
    assert len(lfm.tl.sample_posterior(adata, number, rng=number)["a"]) == 2
    assert len(lfm.get.factors_df(adata, factors=number - 1, n_genes=number)) == 2
    lfm.tl.anomalies(adata, max_entries=number)
    lfm.pl.anomalies(adata, n_labels=number, show=False)
    lfm.tl.rank_genes(adata, mask_obs=adata.obs["a"].to_numpy() > 0)
    assert len(lfm.pl.rank_genes(adata, n_genes=number, show=False)[0].get_yticklabels()) == 2
    assert len(lfm.pl.loadings(adata, number - 1, n_genes=number, show=False)[0].patches) == 2


@pytest.mark.parametrize("number", [2.5, True, np.bool_(True), np.nan, np.inf, "2", None, 2j])
def test_no_whole_numbers(number):
    with pytest.raises(TypeError, match="`n_factors` must be a whole number or 'auto', found"):
        lfm.tl.fit(SMALL, number)


def test_missing_values_are_told_what_is_for_them():
    adata = SMALL.copy()
    adata.X[3, 4] = np.nan
    with pytest.raises(ValueError, match=r"cell 'cell_3', gene 'gene_4'.* missing.*observed='stored'.*held_out="):
        lfm.tl.fit(adata, 2)
    adata.X[3, 4] = np.inf
    with pytest.raises(ValueError, match=r"Remove or replace them first\.$"):
        lfm.tl.fit(adata, 2)


def test_a_warning_points_at_the_line_that_called(recwarn):
    warn_user("here")
    assert (recwarn[0].filename, recwarn[0].category) == (__file__, UserWarning)
