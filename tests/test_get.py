from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scvi_lfm as lfm

GENES = [f"gene_{j}" for j in range(5)]
CELLS = [f"cell_{i}" for i in range(4)]


def records(**fields):
    return pd.DataFrame(fields).to_records(index=False)


@pytest.fixture
def adata():
    """Every field that `get` reads, with numbers to check by eye; gene_4 was not fitted, factor 2 is off."""
    rng = np.random.default_rng(0)
    adata = ad.AnnData(
        rng.normal(size=(4, 5)).astype(np.float32), obs=pd.DataFrame(index=CELLS), var=pd.DataFrame(index=GENES)
    )
    nan = [np.nan] * 3
    adata.varm["lfm"] = np.array([[0.1, -0.5, 0], [-0.7, 0.2, 0], [0.3, 0.1, 0], [0.2, -0.9, 0], nan], dtype=np.float32)
    adata.varm["lfm_sd"] = np.array([[0.01, 0.02, 0]] * 4 + [nan], dtype=np.float32)
    adata.obsm["X_lfm"] = np.array([[3, 1, 0], [-3, 1, 0], [3, -1, 0], [-3, -1, 0]], dtype=np.float32)
    adata.obsm["X_lfm_sd"] = np.array([[0.3, 0.4, 0], [3, 4, 0], [0, 0, 0], [1, 0, 0]], dtype=np.float32)
    adata.uns["lfm"] = {
        "params": {"n_factors": 3},
        "variance_ratio": np.array([0.25, 0.125, 0], dtype=np.float32),
        "elbo": {"epoch": np.array([1, 2, 3.0]), "value": np.array([-1.5, -1.1, -1.0]), "rank0": -2.0},
        "rank": {
            "n_factors": np.arange(5),
            "elbo": np.array([-2.0, -1.5, -1.2, -1.0, -1.1]),
            "effective": np.array([0, 0.9, 1.7, 2.4, 2.4]),
            "n_entries": 20,
        },
    }
    adata.uns["rank_genes_lfm"] = {
        "params": {"groupby": "type", "reference": "rest", "method": "lfm", "use_raw": False, "key": "lfm"},
        "names": records(T=["gene_1", "gene_0", "gene_2", "gene_3"], B=["gene_3", "gene_2", "gene_0", "gene_1"]),
        "scores": records(T=[2.0, 0.5, -0.1, -1.0], B=[1.0, 0.1, 0.0, -2.0]),
        "logfoldchanges": records(T=[3.0, 0.7, -0.2, -1.5], B=[1.5, 0.2, 0.0, -3.0]),
        "sd": records(T=[0.1, 0.2, 0.3, 0.4], B=[0.4, 0.3, 0.2, 0.1]),
        "lfsr": records(T=[0.0, 0.01, 0.4, 0.02], B=[0.01, 0.3, 0.5, 0.0]),
    }
    entries = pd.DataFrame(
        {
            "cell": ["cell_2", "cell_0", "cell_2"],
            "gene": ["gene_0", "gene_3", "gene_3"],
            "y": [5.0, 0.0, 4.0],
            "expected": [1.0, 3.0, 1.5],
            "p": [1e-9, 1e-7, 1e-6],
            "q": [1e-8, 1e-6, 1e-5],
            "log_ratio": [9.0, 7.0, 2.0],
            "lfdr": [0.001, 0.01, 0.3],
            "direction": ["up", "down", "up"],
        }
    )
    adata.uns["lfm_anomaly"] = {"params": {"key": "lfm"}, "depth_correlation": -0.25, "entries": entries}
    return adata


def test_rank_genes_df_lists_every_group_in_its_order(adata):
    table = lfm.get.rank_genes_df(adata)
    assert list(table.columns) == ["group", "names", "scores", "logfoldchanges", "sd", "lfsr"]
    assert list(table["group"].cat.categories) == ["T", "B"]
    assert list(table["group"]) == ["T"] * 4 + ["B"] * 4
    assert list(table["names"][:4]) == ["gene_1", "gene_0", "gene_2", "gene_3"]
    np.testing.assert_array_equal(table["lfsr"][4:], [0.01, 0.3, 0.5, 0.0])


def test_rank_genes_df_of_one_group_has_no_group_column(adata):
    one, listed = lfm.get.rank_genes_df(adata, "B"), lfm.get.rank_genes_df(adata, ["B", "B"])
    assert list(one.columns) == ["names", "scores", "logfoldchanges", "sd", "lfsr"]
    assert list(one["scores"]) == [1.0, 0.1, 0.0, -2.0]
    pd.testing.assert_frame_equal(one, listed)


def test_rank_genes_df_keeps_the_order_asked_for(adata):
    table = lfm.get.rank_genes_df(adata, ["B", "T"])
    assert list(table["group"].cat.categories) == ["B", "T"]
    assert list(table["group"].unique()) == ["B", "T"]


@pytest.mark.parametrize(
    ("bounds", "names"),
    [
        ({"max_lfsr": 0.02}, ["gene_1", "gene_0", "gene_3"]),
        ({"min_score": 0.5}, ["gene_1", "gene_0"]),
        ({"max_lfsr": 0.02, "min_score": -1}, ["gene_1", "gene_0", "gene_3"]),
        ({"max_lfsr": 0.015, "min_score": 5}, []),
    ],
)
def test_rank_genes_df_bounds_include_their_value(adata, bounds, names):
    table = lfm.get.rank_genes_df(adata, "T", **bounds)
    assert list(table["names"]) == names
    assert list(table.index) == list(range(len(names)))


def test_rank_genes_df_agrees_with_scanpys_own_table(adata):
    import scanpy as sc

    # scanpy asks for p-value columns unless it is told that there are none
    adata.uns["rank_genes_lfm"]["params"]["method"] = "logreg"
    theirs = sc.get.rank_genes_groups_df(adata, None, key="rank_genes_lfm")
    ours = lfm.get.rank_genes_df(adata)[["group", "names", "scores"]]
    pd.testing.assert_frame_equal(ours, theirs, check_dtype=False, check_categorical=False)


def test_anomalies_df_has_every_column_and_the_depth_correlation(adata):
    table = lfm.get.anomalies_df(adata)
    pd.testing.assert_frame_equal(table, adata.uns["lfm_anomaly"]["entries"])
    assert table.attrs == {"depth_correlation": -0.25}


@pytest.mark.parametrize(
    ("choice", "ratios"),
    [
        ({"cell": "cell_2"}, [9, 2]),
        ({"cell": ["cell_0", "cell_1"]}, [7]),
        ({"cell": "cell_1"}, []),
        ({"gene": "gene_3"}, [7, 2]),
        ({"gene": ["gene_3", "gene_0"], "cell": "cell_2"}, [9, 2]),
        ({"direction": "up"}, [9, 2]),
        ({"direction": "down", "cell": "cell_2"}, []),
    ],
)
def test_anomalies_df_filters(adata, choice, ratios):
    table = lfm.get.anomalies_df(adata, **choice)
    assert list(table["log_ratio"]) == ratios
    assert list(table.index) == list(range(len(ratios)))


def test_anomalies_df_gives_a_copy(adata):
    table = lfm.get.anomalies_df(adata)
    table.loc[0, "y"] = -1
    assert adata.uns["lfm_anomaly"]["entries"].loc[0, "y"] == 5


def test_factors_df_sorts_by_size_and_leaves_out_what_was_not_fitted(adata):
    table = lfm.get.factors_df(adata)
    assert list(table.columns) == ["factor", "gene", "loading", "sd"]
    assert list(table["factor"]) == [0] * 4 + [1] * 4
    assert list(table["gene"]) == ["gene_1", "gene_2", "gene_3", "gene_0", "gene_3", "gene_0", "gene_1", "gene_2"]
    np.testing.assert_allclose(table["loading"], [-0.7, 0.3, 0.2, 0.1, -0.9, -0.5, 0.2, 0.1], rtol=1e-6)
    np.testing.assert_allclose(table["sd"], [0.01] * 4 + [0.02] * 4, rtol=1e-6)


def test_factors_df_takes_the_first_genes_of_the_chosen_factors(adata):
    table = lfm.get.factors_df(adata, factors=[1, 0], n_genes=1)
    assert table[["factor", "gene"]].to_numpy().tolist() == [[1, "gene_3"], [0, "gene_1"]]
    assert list(lfm.get.factors_df(adata, factors=1, n_genes=2)["gene"]) == ["gene_3", "gene_0"]
    assert lfm.get.factors_df(adata, factors=np.int64(1), n_genes=99)["gene"].size == 4


def test_factors_df_gives_a_factor_that_is_off_when_asked(adata):
    assert not lfm.get.factors_df(adata, factors=2)["loading"].any()


def test_variance_df_accumulates(adata):
    table = lfm.get.variance_df(adata)
    assert table.to_dict("list") == {
        "factor": [0, 1, 2],
        "variance_ratio": [0.25, 0.125, 0],
        "cumulative": [0.25, 0.375, 0.375],
        "share": [pytest.approx(2 / 3), pytest.approx(1 / 3), 0],
    }


def test_variance_df_has_no_share_where_all_factors_are_off(adata):
    adata.uns["lfm"]["variance_ratio"] = np.zeros(3)
    assert not lfm.get.variance_df(adata)["share"].any()


def test_elbo_df_gives_the_gain_over_no_factors(adata):
    table = lfm.get.elbo_df(adata)
    assert list(table.columns) == ["epoch", "value", "gain", "share", "missing"]
    np.testing.assert_allclose(table["gain"], [0.5, 0.9, 1.0])
    np.testing.assert_allclose(table["share"], [0.5, 0.9, 1.0])
    assert table["missing"].isna().all()  # two epochs and the result tell nothing yet


def test_elbo_df_has_no_share_where_factors_gain_nothing(adata):
    adata.uns["lfm"]["elbo"]["rank0"] = -1.0
    assert lfm.get.elbo_df(adata)[["share", "missing"]].isna().all(None)


def test_uncertainty_df_is_a_share_of_the_spread_of_the_cells(adata):
    table = lfm.get.uncertainty_df(adata)
    np.testing.assert_allclose(table["sd"], [0.5, 5, 0, 1], rtol=1e-6)
    np.testing.assert_allclose(table["relative"], np.array([0.5, 5, 0, 1]) / np.sqrt(10), rtol=1e-6)
    assert list(table.index) == CELLS
    assert lfm.get.uncertainty_df(adata[:1])["relative"].isna().all()  # one cell is spread over nothing
    del adata.obsm["X_lfm_sd"]
    with pytest.raises(KeyError, match=r"obsm has no 'X_lfm_sd'.*Run lfm\.tl\.fit\(adata\) first"):
        lfm.get.uncertainty_df(adata)


CALLS = {
    "rank_genes_df": ("rank_genes_lfm", "lfm.tl.rank_genes(adata, groupby)"),
    "anomalies_df": ("lfm_anomaly", "lfm.tl.anomalies(adata)"),
    "factors_df": ("lfm", "lfm.tl.fit(adata)"),
    "variance_df": ("lfm", "lfm.tl.fit(adata)"),
    "elbo_df": ("lfm", "lfm.tl.fit(adata)"),
    "uncertainty_df": ("lfm", "lfm.tl.fit(adata)"),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_missing_key_names_the_call_to_make(adata, name):
    key, call = CALLS[name]
    del adata.uns[key]
    with pytest.raises(KeyError) as error:
        getattr(lfm.get, name)(adata)
    assert f"uns has no '{key}'" in str(error.value)
    assert f"Run {call} first" in str(error.value)


@pytest.mark.parametrize("name", CALLS)
def test_a_mistyped_key_names_near_matches_and_the_key_in_the_call(adata, name):
    key, call = CALLS[name]
    with pytest.raises(KeyError) as error:
        getattr(lfm.get, name)(adata, key=key + "s")
    assert f"Did you mean '{key}'" in str(error.value)
    assert f"{call[:-1]}, key_added='{key}s')" in str(error.value)


def test_rank_df_gives_the_gain_in_nats_and_marks_the_number_chosen(adata):
    table = lfm.get.rank_df(adata)
    assert list(table.columns) == ["n_factors", "elbo", "gain", "effective", "chosen"]
    np.testing.assert_allclose(table["gain"], [0, 10, 16, 20, 18])
    assert list(table["chosen"]) == [False, False, False, True, False]


@pytest.mark.parametrize("name", ["rank_genes_df", "anomalies_df", "variance_df", "elbo_df"])
def test_what_another_tool_wrote_is_refused(adata, name):
    adata.uns["pca"] = {"params": {}}
    with pytest.raises(KeyError, match=r"uns\['pca'\] was not written by lfm.tl.\w+: it has no '\w+'"):
        getattr(lfm.get, name)(adata, key="pca")


@pytest.mark.parametrize("name", CALLS)
def test_only_an_anndata_is_read(name):
    with pytest.raises(TypeError, match=r"`adata` must be an AnnData, found DataFrame"):
        getattr(lfm.get, name)(pd.DataFrame())


@pytest.mark.parametrize(
    ("name", "arguments", "error", "message"),
    [
        ("rank_genes_df", {"group": "t"}, KeyError, r"uns\['rank_genes_lfm'\] has no group 't'. Did you mean 'T'\?"),
        ("rank_genes_df", {"group": []}, ValueError, r"`group` names nothing"),
        ("rank_genes_df", {"max_lfsr": 1.5}, ValueError, r"`max_lfsr` must lie between 0 and 1, found 1.5"),
        ("rank_genes_df", {"min_score": "1"}, TypeError, r"`min_score` must be a number, found '1' of type str"),
        ("anomalies_df", {"cell": "cell_9"}, KeyError, r"`cell`: obs_names has no 'cell_9'. Did you mean"),
        ("anomalies_df", {"gene": ["gene_0", "x"]}, KeyError, r"`gene`: var_names has no 'x'. There are: 'gene_0'"),
        ("anomalies_df", {"direction": "both"}, ValueError, r"`direction` must be one of 'up', 'down', found 'both'"),
        ("factors_df", {"factors": 3}, ValueError, r"asks for factor 3, but the fit has 3, counted from 0 to 2"),
        ("factors_df", {"factors": [0, -1]}, ValueError, r"`factors` must be at least 0, found -1"),
        ("factors_df", {"factors": "0"}, TypeError, r"`factors` must be a whole number, found '0' of type str"),
        ("factors_df", {"factors": []}, ValueError, r"`factors` names nothing"),
        ("factors_df", {"n_genes": 0}, ValueError, r"`n_genes` must be at least 1, found 0"),
        ("factors_df", {"key": 1}, TypeError, r"`key` must be a string, found 1"),
    ],
)
def test_a_wrong_argument_is_named_with_what_there_is(adata, name, arguments, error, message):
    with pytest.raises(error, match=message):
        getattr(lfm.get, name)(adata, **arguments)


def test_a_fit_whose_number_of_factors_was_given_has_no_rank_df(adata):
    del adata.uns["lfm"]["rank"]
    with pytest.raises(KeyError, match=r"was given, not chosen. Run lfm.tl.fit\(adata, n_factors='auto'\)"):
        lfm.get.rank_df(adata)


def test_a_fit_whose_loadings_were_deleted_is_named(adata):
    del adata.varm["lfm"]
    with pytest.raises(KeyError, match=r"varm has no 'lfm'.*Run lfm.tl.fit\(adata\) first"):
        lfm.get.factors_df(adata)


def tables(adata):
    return {name: getattr(lfm.get, name)(adata) for name in CALLS}


def test_a_slice_lists_only_what_it_holds(adata):
    view = adata[["cell_2", "cell_3"], ["gene_0", "gene_1", "gene_4"]]
    assert list(lfm.get.factors_df(view, factors=1)["gene"]) == ["gene_0", "gene_1"]
    assert list(lfm.get.rank_genes_df(view, "B")["names"]) == ["gene_0", "gene_1"]
    assert lfm.get.anomalies_df(view)[["cell", "gene"]].to_numpy().tolist() == [["cell_2", "gene_0"]]
    pd.testing.assert_frame_equal(lfm.get.elbo_df(view), lfm.get.elbo_df(adata))
    assert view.is_view


@pytest.mark.parametrize("form", ["h5ad", "zarr"])
def test_files_give_the_same_tables(adata, tmp_path, form):
    path = tmp_path / f"saved.{form}"
    getattr(adata, f"write_{form}")(path)
    read = getattr(ad, f"read_{form}")(path)
    for name, table in tables(adata).items():
        pd.testing.assert_frame_equal(getattr(lfm.get, name)(read), table)


def test_tables_of_the_tools_themselves(tmp_path):
    adata = lfm.datasets.simulate(60, 30, 2)
    adata.X[7, 3] += 30
    lfm.tl.fit(adata, 3, progress=False)
    lfm.tl.rank_genes(adata, mask_obs=np.arange(60) < 20)
    lfm.tl.anomalies(adata)
    found = tables(adata)
    assert list(found["rank_genes_df"]["group"].unique()) == ["selected"]
    assert found["rank_genes_df"]["scores"].is_monotonic_decreasing
    assert found["anomalies_df"].loc[0, ["cell", "gene"]].tolist() == ["cell_7", "gene_3"]
    assert found["elbo_df"]["share"].iloc[-1] == 1
    loading = found["factors_df"].query("factor == 0").set_index("gene")["loading"]
    np.testing.assert_array_equal(loading[adata.var_names], adata.varm["lfm"][:, 0])
    adata.write_h5ad(tmp_path / "fit.h5ad")
    for name, table in tables(ad.read_h5ad(tmp_path / "fit.h5ad")).items():
        pd.testing.assert_frame_equal(table, found[name])
