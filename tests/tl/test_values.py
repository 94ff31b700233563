"""What a tool reads must be what the fit read; and what a fit reads should be what its likelihood is made for."""

from __future__ import annotations

import math
import re
import warnings

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
import scipy.sparse as sp

import scvi_lfm as lfm
from quietly import no_warning

N, M = 150, 130
E = math.e


def simulate_counts(rng=0):
    adata = lfm.datasets.simulate(N, M, 3, mu=0.5, likelihood="negative_binomial", rng=rng)
    adata.obs["type"] = np.where(adata.obsm["A"][:, 0] > 0, "one", "two")
    return adata


def logged(counts, base=None, target=1e4):
    adata = counts.copy()
    adata.layers["counts"] = counts.X.copy()
    sc.pp.normalize_total(adata, target_sum=target)
    sc.pp.log1p(adata, base=base)
    return adata


def fit(adata, n_factors=3, **options):
    with warnings.catch_warnings():
        for message in ("The fit did not converge", ".*are all zero; they are fitted"):
            warnings.filterwarnings("ignore", message=message)
        lfm.tl.fit(adata, n_factors, **{"progress": False} | options)
    return adata


@pytest.fixture(scope="module")
def fits():
    """A fit of logs and one of counts, of the same cells. Shared: copy before writing into it."""
    counts = simulate_counts()
    return {"logs": fit(logged(counts)), "counts": fit(counts)}


@pytest.fixture
def logs(fits):
    return fits["logs"].copy()


@pytest.fixture
def new(fits):
    """New cells, logged as the reference was, without a fit."""
    return logged(simulate_counts(1))


# the record


def test_the_record_is_that_of_the_values(fits):
    for name, adata in fits.items():
        record, values = adata.uns["lfm"]["values"], adata.X.toarray().astype(float)
        assert record["whole"] == np.mean(values[values != 0] == np.rint(values[values != 0]))
        assert record["minimum"] == 0
        assert record["maximum"] == values.max()
        assert record["mean_total"] == pytest.approx(values.sum(1).mean(), rel=1e-6)
        assert record.get("log_base") == (E if name == "logs" else None)
    counts = fits["counts"].uns["lfm"]
    # expected by the prior of a cell, whose size factor is 1 on average
    assert counts["values"]["expected_total"] == pytest.approx(counts["expected_counts"], rel=1e-5)


@pytest.mark.parametrize("suffix", ["h5ad", pytest.param("zarr", marks=pytest.mark.slow)])
def test_the_record_survives_a_file(fits, suffix, tmp_path):
    for name, adata in fits.items():
        path = tmp_path / f"{name}.{suffix}"
        getattr(adata, f"write_{suffix}")(path)
        read = getattr(ad, f"read_{suffix}")(path)
        assert read.uns["lfm"]["values"] == adata.uns["lfm"]["values"]
        no_warning(lfm.tl.anomalies, read)
        read.X = 0.5 - read.X.toarray()
        with pytest.raises(ValueError, match="values that are negative" if name == "logs" else "not whole numbers"):
            lfm.tl.anomalies(read)


def test_the_record_is_of_the_genes_that_were_fitted(fits):
    adata = fits["logs"].copy()
    quiet = adata.X.toarray().max(0) < adata.X.max()
    fit(adata, mask_var=quiet, max_epochs=2)
    assert adata.uns["lfm"]["values"]["maximum"] == adata.X[:, np.flatnonzero(quiet)].max()


def test_the_record_of_ratings_is_of_those_that_are_stored():
    adata = ad.AnnData(sp.csr_matrix(np.random.default_rng(0).integers(0, 6, (40, 30)).astype(np.float32)))
    adata.X.eliminate_zeros()
    fit(adata, 2, observed="stored", max_epochs=2)
    record = adata.uns["lfm"]["values"]
    assert (record["minimum"], record["maximum"], record["whole"]) == (1, 5, 1)
    assert "log_base" not in record


def test_a_projection_passes_the_record_on(logs, new):
    lfm.tl.project(new, logs)
    assert new.uns["lfm"]["values"] == logs.uns["lfm"]["values"]
    new.X = new.layers["counts"]
    with pytest.raises(ValueError, match="X holds whole numbers"):
        lfm.tl.anomalies(new)


# another kind


READERS = {
    "anomalies": lfm.tl.anomalies,
    "check": lambda adata, **options: lfm.tl.check(adata, refit=False, **options),
    "recommend": lambda adata: lfm.tl.recommend(adata, n_top=2),
}


@pytest.mark.parametrize("name", READERS)
def test_counts_where_the_fit_read_logs(logs, name):
    logs.layers["lognorm"], logs.X = logs.X, logs.layers["counts"]
    before = logs.copy()
    message = (
        r"X holds whole numbers \(from 0 to \d+\), and the fit read values that are not whole \(from 0 to [\d.]+\)\. "
        r"layers\['lognorm'\] matches: pass layer='lognorm'\."
    )
    with pytest.raises(ValueError, match=message):
        READERS[name](logs)
    assert set(logs.uns) == set(before.uns)
    assert set(logs.obs) == set(before.obs)


@pytest.mark.parametrize("name", ["anomalies", "check"])
def test_a_layer_of_counts_where_the_fit_read_logs(logs, name):
    with (
        pytest.warns(UserWarning, match="not what the fit read"),
        pytest.raises(ValueError, match=r"layers\['counts'\] holds whole numbers.* X matches: leave `layer` out\."),
    ):
        READERS[name](logs, layer="counts")


def test_where_nothing_matches(logs):
    logs.X = logs.layers["counts"]
    logs.layers["twice"] = 2 * logs.X
    with pytest.raises(ValueError, match=r"Pass values of the kind that was fitted, or run lfm\.tl\.fit again\.$"):
        lfm.tl.anomalies(logs)


def follow(told, adata):
    """Do what an error says between `call` and the next words."""
    exec(re.search(r"call (.*?)( and pass| first)", str(told.value)).group(1), {"adata": adata})


def test_raw_may_be_what_matches(logs):
    expected = lfm.tl.anomalies(logs, copy=True)
    other = sc.AnnData(logs.X, obs=logs.obs, var=logs.var)[:, ::-1].copy()
    logs.raw, logs.X = other, logs.layers["counts"]
    with pytest.raises(ValueError, match=r"raw matches: call adata\.X = adata\.raw\[:, adata\.var_names\]\.X first\."):
        lfm.tl.anomalies(logs)
    logs.X = logs.raw[:, logs.var_names].X
    lfm.tl.anomalies(logs)
    np.testing.assert_array_equal(logs.obs["lfm_anomaly"], expected.obs["lfm_anomaly"])


def test_raw_in_a_file_is_judged_a_few_cells_at_a_time(logs, tmp_path, monkeypatch):
    logs.raw, logs.X = sc.AnnData(logs.X, obs=logs.obs, var=logs.var)[:, ::-1].copy(), logs.layers["counts"]
    logs.write_h5ad(tmp_path / "cells.h5ad")
    adata = sc.read_h5ad(tmp_path / "cells.h5ad", backed="r")

    def refuse(*_):
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr("anndata._core.sparse_dataset.BaseCompressedSparseDataset.__getitem__", refuse)
        with pytest.raises(ValueError, match=r"raw matches: call (.*) and pass layer='raw'\.$") as told:
            lfm.tl.anomalies(adata)
    follow(told, adata)
    with pytest.warns(UserWarning, match="layer='raw' is not what the fit read"):
        lfm.tl.anomalies(adata, layer="raw")


def test_x_may_be_what_matches_a_fit_of_a_layer(fits, tmp_path):
    adata = fits["logs"].copy()
    adata.layers["values"] = adata.X.copy()
    fit(adata, layer="values", max_epochs=2)
    adata.layers["values"] = adata.layers["counts"]
    adata.write_h5ad(tmp_path / "cells.h5ad")
    for one in (adata, sc.read_h5ad(tmp_path / "cells.h5ad", backed="r")):
        with pytest.raises(
            ValueError, match=r"X matches: call (adata\.layers\['values'\] = adata\.X.*) first\."
        ) as told:
            lfm.tl.anomalies(one)
        follow(told, one)
        no_warning(lfm.tl.anomalies, one)


def test_logs_where_the_fit_read_counts(fits):
    adata = fits["counts"].copy()
    adata.layers["counts"], adata.X = adata.X, adata.X.log1p()
    for name in READERS:
        with pytest.raises(ValueError, match=r"X holds .* that are not whole numbers.* layers\['counts'\] matches"):
            READERS[name](adata)


@pytest.mark.filterwarnings("ignore:zero-centering a sparse")
def test_new_cells_of_another_kind(logs, new):
    good = new.X
    for values, words in (
        (new.layers["counts"], "whole numbers"),
        (sc.pp.scale(new, copy=True).X, "values that are negative"),
    ):
        new.X = values
        with pytest.raises(ValueError, match=f"X holds {words}.* Pass values of the kind that was fitted"):
            lfm.tl.project(new, logs)
        assert "lfm" not in new.uns
    new.layers["lognorm"] = good
    with pytest.raises(ValueError, match=r"layers\['lognorm'\] matches: pass layer='lognorm'\."):
        lfm.tl.project(new, logs)
    with pytest.warns(UserWarning, match="not what the fit read"):
        lfm.tl.project(new, logs, layer="lognorm")


def test_logs_where_the_fit_read_scaled_values(fits):
    adata = fits["logs"].copy()
    adata.layers["lognorm"] = adata.X
    adata.X = sc.pp.scale(adata.X.toarray())
    with pytest.warns(UserWarning, match="scaled to unit variance"):
        fit(adata, max_epochs=2)
    no_warning(lfm.tl.anomalies, adata)
    adata.X = adata.layers["lognorm"]
    with pytest.raises(ValueError, match="X holds no negative value .*, and the fit read some that are"):
        lfm.tl.anomalies(adata)


# another scale


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda new: sc.pp.normalize_total(new, target_sum=1e4), "the largest is .*, where the fit read no more than"),
        (lambda new: logged(new, target=1e9), "those of a cell add up to .* on average, where the fit expects"),
        (lambda new: logged(new, target=1), "the largest is .*, where the fit expects a mean of .* of one gene"),
    ],
    ids=["unlogged", "higher", "lower"],
)
def test_new_cells_on_another_scale(logs, new, change, words):
    new.layers["good"], new.X = new.X, new.layers["counts"]
    del new.uns["log1p"]
    changed = change(new) or new
    message = rf"The values of X are not on the scale that the fit read: {words}.* layers\['good'\] matches"
    with pytest.warns(UserWarning, match=message) as caught:
        lfm.tl.project(changed, logs)
    assert {warning.filename for warning in caught} == {__file__}


def test_counts_on_another_scale(fits):
    adata = fits["counts"].copy()
    new = adata.copy()
    adata.X = 4 * adata.X
    for name in READERS:
        with pytest.warns(UserWarning, match="those of a cell add up to"):
            READERS[name](adata)
    # size factors take care of the depth of new cells
    new.X = 4 * new.X
    no_warning(lfm.tl.project, new, fits["counts"], key_added="new")


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("of", ["logs", "counts"])
def test_values_that_are_all_zero(fits, of, name):
    adata = fits[of].copy()
    adata.X = 0 * adata.X
    with pytest.warns(UserWarning, match="are not on the scale that the fit read: .* is 0,|add up to 0 on average"):
        READERS[name](adata)


def test_shares_are_normalised_as_counts_are(pbmc):
    """The advice for values that add up to the same in all cells, followed."""
    shares, expected = pbmc.copy(), fit(pbmc.copy(), normalize=1e4)
    sc.pp.normalize_total(shares, target_sum=1)
    with pytest.warns(UserWarning, match=r"look unlogged: .* pass normalize=1e4"):
        lfm.tl.fit(shares.copy(), 3, progress=False)
    no_warning(lfm.tl.fit, shares, 3, normalize=1e4, progress=False)
    np.testing.assert_allclose(shares.obsm["X_lfm"], expected.obsm["X_lfm"], atol=1e-3)
    no_warning(lfm.tl.project, shares[:50].copy(), expected, key_added="new")


# no false alarm


@pytest.mark.parametrize("name", ["logs", "counts"])
def test_parts_of_what_was_fitted_are_of_its_kind(fits, name):
    adata, rng = fits[name], np.random.default_rng(0)
    order = np.argsort(adata.X.toarray().sum(0))
    depth = np.argsort(adata.X.toarray().sum(1))
    cells = [rng.choice(N, 3, replace=False), rng.choice(N, 60, replace=False), depth[:20], depth[-20:], np.arange(N)]
    genes = [rng.choice(M, 5, replace=False), rng.permutation(M), order[:110], order[-110:], order[:3]]
    for some in cells:
        for these in genes:
            no_warning(READERS["recommend"], adata[some][:, these].copy())


def test_new_cells_of_another_depth_or_with_fewer_genes(fits, new):
    new.layers["thin"] = sp.csr_matrix(
        np.random.default_rng(0).binomial(new.layers["counts"].toarray().astype(int), 0.2).astype(np.float32)
    )
    new.X = new.layers["thin"]
    new = new[np.asarray(new.X.sum(1)).ravel() > 0].copy()
    no_warning(lfm.tl.project, ad.AnnData(new.X, obs=new.obs, var=new.var), fits["counts"])
    thin = logged(ad.AnnData(new.X, obs=new.obs, var=new.var))
    no_warning(lfm.tl.project, thin.copy(), fits["logs"])
    for cells in (slice(1), slice(30, 60)):
        no_warning(lfm.tl.project, thin[cells][:, np.random.default_rng(0).permutation(M)].copy(), fits["logs"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*fitted genes are absent")
        lfm.tl.project(thin[:, :40].copy(), fits["logs"])
        lfm.tl.project(thin[:, 20:].copy(), fits["logs"])


@pytest.mark.parametrize("likelihood", ["poisson", "bernoulli"])
def test_other_count_likelihoods(likelihood):
    adata = lfm.datasets.simulate(80, 120, 2, likelihood=likelihood)
    fit(adata, 2, likelihood=likelihood, max_epochs=5)
    no_warning(lfm.tl.anomalies, adata)
    order = np.argsort(adata.X.toarray().sum(0))
    for genes in (order[:105], order[-105:]):
        no_warning(lfm.tl.anomalies, adata[:, genes].copy())


def test_molecules_set_aside_are_counts_too():
    adata = simulate_counts()
    lfm.tl.hold_out(adata, 0.5, by="molecules")
    fit(adata, layer="held_out_train", max_epochs=5)
    for call in READERS.values():
        no_warning(call, adata)


def test_held_out_entries_are_of_the_kind_that_was_read(fits):
    adata = fits["logs"].copy()
    lfm.tl.hold_out(adata, 0.2)
    fit(adata, held_out="held_out", max_epochs=5)
    assert adata.uns["lfm"]["values"] == fits["logs"].uns["lfm"]["values"]
    for call in READERS.values():
        no_warning(call, adata)


def test_a_handful_of_ratings():
    rng = np.random.default_rng(0)
    adata = ad.AnnData(sp.random_array((60, 40), density=0.3, format="csr", rng=rng, dtype=np.float32))
    adata.X.data[:] = rng.integers(1, 11, adata.X.nnz) / 2
    fit(adata, 2, observed="stored")
    for low in (0.5, 1, 5):
        new = ad.AnnData(sp.csr_matrix(([low] * 12, ([0] * 12, range(12))), shape=(1, 40), dtype=np.float32))
        new.var_names = adata.var_names
        no_warning(lfm.tl.project, new, adata)
    new.X = 20 * new.X
    with pytest.warns(UserWarning, match="the largest is 100, where the fit read no more than 5"):
        lfm.tl.project(new, adata)


def test_counts_of_which_stored_ones_alone_are_data(fits):
    adata = ad.AnnData(fits["counts"].X, obs=fits["counts"].obs[["type"]])
    fit(adata, 2, observed="stored", likelihood="poisson", max_epochs=3)
    for call in READERS.values():
        no_warning(call, adata)


def test_recommend_takes_any_pattern_of_what_was_seen(fits):
    adata = fits["logs"].copy()
    adata.layers["seen"] = (adata.X > 0).astype(np.float32)
    with pytest.warns(UserWarning, match="not what the fit read"):
        lfm.tl.recommend(adata, layer="seen")


def test_a_fit_without_a_record_is_taken_as_it_is(logs, new):
    del logs.uns["lfm"]["values"]
    lfm.tl.rank_genes(logs, "type")
    assert np.isfinite(logs.uns["rank_genes_lfm"]["logfoldchanges"]["one"]).all()
    new.X = new.layers["counts"]
    no_warning(lfm.tl.project, new, logs)
    logs.X = logs.layers["counts"]
    no_warning(lfm.tl.anomalies, logs)


# what a fit is given


@pytest.fixture(scope="module")
def pbmc():
    """Real counts of 200 cells in the 400 genes with most of them."""
    adata = lfm.datasets.pbmc_sorted()[::6].copy()
    adata.X = adata.X.astype(np.float32)
    return adata[:, np.argsort(-np.asarray(adata.X.sum(0)).ravel())[:400]].copy()


def margins(adata, **options):
    fit(adata, 0, max_epochs=1, **options)
    return adata.uns["lfm"]


@pytest.mark.parametrize("layer", [None, "values"])
@pytest.mark.parametrize("likelihood", ["auto", "normal"])
def test_unlogged_values_warn_with_figures_and_calls(pbmc, layer, likelihood):
    adata = sc.pp.normalize_total(pbmc, target_sum=1e4, copy=True)
    adata.layers["values"] = adata.X.copy()
    place, also = ("adata.X", "") if layer is None else ("adata.layers['values']", ", layer='values'")
    with pytest.warns(UserWarning, match="look unlogged") as caught:
        assert "log_base" not in margins(adata, layer=layer, likelihood=likelihood)["values"]
    words = str(caught[0].message)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert f"the largest is {adata.X.max():,.4g}, the mean of those above zero {adata.X.data.mean():,.3g}" in words
    assert "pass normalize=1e4" in words
    assert f"call sc.pp.log1p(adata{also}) first" in words
    assert f"likelihood='negative_binomial' after {place} = np.rint({place})" in words
    # and the calls mend it
    no_warning(margins, adata, layer=layer, normalize=1e4)
    sc.pp.log1p(adata, layer=layer)
    no_warning(margins, adata, layer=layer)


def test_corrected_counts_can_be_rounded(pbmc):
    adata = pbmc.copy()
    adata.X = adata.X * np.float32(0.9)
    with pytest.warns(UserWarning, match="look unlogged"):
        margins(adata)
    adata.X = np.rint(adata.X)
    no_warning(fit, adata[:, :40].copy(), 2, likelihood="negative_binomial", max_epochs=1)


@pytest.mark.filterwarnings("ignore:zero-centering a sparse")
def test_scaled_values_warn(pbmc):
    adata = logged(pbmc)
    adata.raw = adata
    sc.pp.scale(adata, max_value=10)
    with pytest.warns(
        UserWarning, match=r"scaled to unit variance \(from -[\d.]+ to [\d.]+\), as sc\.pp\.scale"
    ) as caught:
        margins(adata)
    assert "adata.raw.to_adata()" in str(caught[0].message)
    no_warning(margins, adata.raw.to_adata())


def test_ratings_and_log_values_do_not_warn(pbmc):
    no_warning(margins, logged(pbmc))
    adata = pbmc.copy()
    adata.X = sc.pp.normalize_total(pbmc, target_sum=1e4, copy=True).X
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*look like expression")
        warnings.filterwarnings("ignore", message=".*takes the entries that X does not store")
        fit(adata, 1, observed="stored", max_epochs=1)


# log fold changes


def folds(adata, base):
    """By hand, of the mean expected eta of both groups."""
    v = np.column_stack([np.ones(adata.n_vars), adata.varm["lfm"]]).astype(float)
    cells = np.column_stack([adata.obs["lfm_a"], adata.obsm["X_lfm"]]).astype(float)
    one = (adata.obs["type"] == "one").to_numpy()
    eta = adata.uns["lfm"]["mu"] + adata.var["lfm_b"].to_numpy(float) + cells @ v.T
    top, bottom = (base ** np.maximum(eta[side].mean(0), 0) - 1 + 1e-9 for side in (one, ~one))
    return np.log2(top / bottom)


def stored_folds(adata):
    lfm.tl.rank_genes(adata, "type", groups=["one"])
    ranked = adata.uns["rank_genes_lfm"]
    by_name = dict(zip(ranked["names"]["one"], ranked["logfoldchanges"]["one"], strict=True))
    return np.array([by_name[name] for name in adata.var_names])


@pytest.mark.parametrize("base", [None, 2, 10])
def test_log_fold_changes_take_the_base_of_the_logs(base):
    adata = fit(logged(simulate_counts(), base=base))
    expected = folds(adata, E if base is None else base)
    np.testing.assert_allclose(stored_folds(adata), expected, rtol=1e-3, atol=1e-3)
    # the note may go or change after the fit
    adata.uns["log1p"] = {"base": 7}
    np.testing.assert_allclose(stored_folds(adata), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["scaled", "unlogged", "whole", "signed"])
def test_log_fold_changes_of_other_values_are_missing(kind, caplog):
    adata = logged(simulate_counts())
    if kind == "scaled":
        adata.X = sc.pp.scale(adata.X.toarray())
    elif kind == "signed":
        adata.X = adata.X.toarray() - 0.5
    else:
        adata.X = adata.layers["counts"] * (1 if kind == "whole" else 100.3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(adata, likelihood="normal")
    with caplog.at_level("WARNING", logger="scvi_lfm"):
        assert np.isnan(stored_folds(adata)).all()
    assert [record.message for record in caplog.records] == [
        "the fit read values that are not log1p: their logfoldchanges are NaN"
    ]
    assert lfm.get.rank_genes_df(adata)["scores"].notna().all()


def test_log_fold_changes_of_counts_need_no_logs(fits, caplog):
    adata = fits["counts"].copy()
    assert np.isfinite(stored_folds(adata)).all()
    assert not caplog.records
