"""Names and labels of any kind: the plain answer, or an error of ours that says what is wrong with them."""

from __future__ import annotations

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import scvi_lfm as lfm

N, M = 40, 30
ODD_NAMES = [
    "", " ", " a", "ünï基", "it's", 'say "hi"', "a/b", "x" * 300, r"$\alpha$", "$", "a$b$c", r"$\frac$", "_hidden",
    "1", "1.0", "nan", "None", "True", "rest", "two\nlines", "tab\t", "%s{x}", "names", "('a', 1)", "\\",
]  # fmt: skip
PLAIN_NAMES = [f"n{k}" for k in range(len(ODD_NAMES))]


def searched(names: list[str]) -> ad.AnnData:
    """A fit with its tables, cells and genes called by these names first."""
    adata = lfm.datasets.simulate(N, M, 2)
    adata.X[np.arange(20), np.arange(20)] += 9
    adata.var_names = [*names, *(f"g{j}" for j in range(M - len(names)))]
    adata.obs_names = [*names, *(f"c{i}" for i in range(N - len(names)))]
    lfm.tl.fit(adata, 2, progress=False)
    lfm.tl.rank_genes(adata, mask_obs=np.arange(N) < 9)
    lfm.tl.anomalies(adata, by="either")
    return adata


@pytest.fixture(scope="module")
def plain():
    """Shared: copy before writing into it."""
    return searched(PLAIN_NAMES)


@pytest.fixture(scope="module")
def odd():
    """Shared: copy before writing into it."""
    return searched(ODD_NAMES)


def renamed(table: pd.DataFrame) -> pd.DataFrame:
    """A table under plain names with the odd ones in their place."""
    return table.replace(dict(zip(PLAIN_NAMES, ODD_NAMES, strict=True)))


def test_odd_names_go_through_every_table(plain, odd, tmp_path):
    odd.write_h5ad(tmp_path / "odd.h5ad")
    for adata in (odd, ad.read_h5ad(tmp_path / "odd.h5ad")):
        for table in (lfm.get.rank_genes_df, lfm.get.anomalies_df, lfm.get.factors_df):
            pd.testing.assert_frame_equal(table(adata), renamed(table(plain)))
    assert not lfm.get.anomalies_df(odd).empty


def test_odd_names_are_found(plain, odd):
    genes = lfm.tl.predict(odd, obs_names=ODD_NAMES, var_names=ODD_NAMES, pairs=True)
    pd.testing.assert_frame_equal(
        genes, renamed(lfm.tl.predict(plain, obs_names=PLAIN_NAMES, var_names=PLAIN_NAMES, pairs=True))
    )
    for name, other in zip(ODD_NAMES, PLAIN_NAMES, strict=True):
        table = lfm.tl.similar_genes(odd, name, n_top=2)
        pd.testing.assert_frame_equal(table, renamed(lfm.tl.similar_genes(plain, other, n_top=2)))
    scored, expected = (
        lfm.tl.rank_cells(adata, names, copy=True).obs["rank_cells_lfm"]
        for adata, names in ((odd, ODD_NAMES), (plain, PLAIN_NAMES))
    )
    np.testing.assert_array_equal(scored, expected)
    turned = odd[:, ::-1].copy()
    lfm.tl.project(turned, odd, key_added="again")
    np.testing.assert_allclose(turned.obsm["X_again"], odd.obsm["X_lfm"], atol=0.01)


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize(
    "draw",
    [
        lambda adata: lfm.pl.rank_genes(adata, n_genes=M, show=False)[0],
        lambda adata: lfm.pl.loadings(adata, n_genes=M, show=False)[0],
        lambda adata: lfm.pl.anomalies(adata, n_labels=M, show=False),
        lambda adata: lfm.pl.anomalies(adata, gene=r"$\frac$", show=False),
        lambda adata: lfm.pl.factors(adata, r"$\frac$", show=False),
        lambda adata: lfm.pl.factors(adata, "_hidden", show=False),
    ],
    ids=["rank_genes", "loadings", "anomalies", "of a gene", "mathtext", "underscore"],
)
def test_odd_names_are_drawn_as_they_are(odd, draw):
    figure = draw(odd).figure
    figure.draw_without_rendering()
    for text in figure.findobj(plt.Text):
        assert "$" not in text.get_text() or not text.get_parse_math()
        assert "x" * 100 not in text.get_text()


@pytest.mark.parametrize("axis", ["obs", "var"])
@pytest.mark.parametrize("index", [lambda names: pd.Index(names, dtype="string"), pd.CategoricalIndex])
@pytest.mark.filterwarnings("ignore:(?s).*expects .(obs|var).index to contain strings")
def test_names_of_any_string_type(plain, axis, index):
    adata = ad.AnnData(plain.X, obs=plain.obs[[]].copy(), var=plain.var[[]].copy())
    getattr(adata, axis).index = index(getattr(adata, f"{axis}_names"))
    lfm.tl.fit(adata, 2, progress=False)
    lfm.tl.rank_genes(adata, mask_obs=np.arange(N) < 9)
    lfm.tl.anomalies(adata, by="either")
    for table in (lfm.get.rank_genes_df, lfm.get.anomalies_df):
        pd.testing.assert_frame_equal(table(adata), table(plain))


@pytest.mark.filterwarnings("ignore:(?s).*expects .var.index to contain strings")
def test_categories_that_are_no_strings_are_no_names():
    adata = lfm.datasets.simulate(N, M, 2)
    adata.var.index = pd.CategoricalIndex(range(M))
    with pytest.raises(TypeError, match=r"var_names are not strings \(found integer\): call adata.var_names = "):
        lfm.tl.fit(adata, 2)


# labels

THIRD = np.arange(N) % 3
LETTERS = np.array(["a", "b", "c"])[THIRD]
LABELS = {
    "integers": (THIRD, ["0", "1", "2"]),
    "booleans": (THIRD == 0, ["False", "True"]),
    "nullable integers": (pd.array(THIRD, dtype="Int64"), ["0", "1", "2"]),
    "nullable booleans": (pd.array(THIRD == 0, dtype="boolean"), ["False", "True"]),
    "nullable strings": (pd.array(LETTERS, dtype="string"), ["a", "b", "c"]),
    "unused": (pd.Categorical(LETTERS, ["c", "a", "none", "b"]), ["c", "a", "b"]),
    "ordered": (pd.Categorical(LETTERS, ["c", "a", "b"], ordered=True), ["c", "a", "b"]),
    "categories of integers": (pd.Categorical(THIRD), ["0", "1", "2"]),
    "categories of booleans": (pd.Categorical(THIRD == 0), ["False", "True"]),
    "categories of strings": (pd.Categorical(pd.array(LETTERS, dtype="string")), ["a", "b", "c"]),
    "tuples": ([[(1, 2), (3, 4), "x"][k] for k in THIRD], ["(1, 2)", "(3, 4)", "x"]),
    "odd names": (np.resize(np.array(ODD_NAMES[1:], dtype=object), N), sorted(ODD_NAMES[1:])),
}
NUMBERS = ("integers", "nullable integers")


@pytest.fixture
def adata(plain):
    return plain.copy()


@pytest.mark.parametrize("kind", LABELS)
def test_labels_of_any_kind_are_ranked(adata, kind):
    adata.obs["label"], groups = LABELS[kind]
    lfm.tl.rank_genes(adata, "label")
    table = lfm.get.rank_genes_df(adata)
    assert list(table["group"].cat.categories) == groups
    for group in (groups[0], groups[-1]):
        mask = (adata.obs["label"].astype(str) == group).to_numpy()
        lfm.tl.rank_genes(adata, mask_obs=mask, key_added="by_mask")
        expected = lfm.get.rank_genes_df(adata, key="by_mask")["scores"]
        np.testing.assert_array_equal(lfm.get.rank_genes_df(adata, group)["scores"], expected)


def test_rankings_by_labels_of_any_kind_are_read_back(adata, tmp_path):
    tables = {}
    for number, (labels, _) in enumerate(LABELS.values()):
        adata.obs["label"] = labels
        lfm.tl.rank_genes(adata, "label", key_added=f"ranked_{number}")
        tables[f"ranked_{number}"] = lfm.get.rank_genes_df(adata, key=f"ranked_{number}")
    del adata.obs["label"]  # which may be of a type that no file holds
    adata.write_h5ad(tmp_path / "labelled.h5ad")
    read = ad.read_h5ad(tmp_path / "labelled.h5ad")
    for key, table in tables.items():
        pd.testing.assert_frame_equal(lfm.get.rank_genes_df(read, key=key), table)


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize("kind", LABELS)
def test_labels_of_any_kind_are_drawn(adata, kind):
    adata.obs["_label$"], groups = LABELS[kind]
    axes = lfm.pl.factors(adata, "_label$", show=False)
    axes.figure.draw_without_rendering()
    if kind not in NUMBERS:
        legend = axes.get_legend()
        assert [handle.get_label() for handle in legend.legend_handles] == groups
        assert not any(text.get_parse_math() for text in [*legend.get_texts(), legend.get_title()])


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize("groups", [pytest.param(None, marks=pytest.mark.slow), r"$\frac$"])
def test_odd_groups_are_titles(adata, groups):
    adata.obs["label"], _ = LABELS["odd names"]
    lfm.tl.rank_genes(adata, "label", reference="a$b$c")
    panels = lfm.pl.rank_genes(adata, groups, n_genes=2, show=False)
    panels[0].figure.draw_without_rendering()
    texts = panels[0].figure.findobj(plt.Text)
    assert {r"$\frac$"} <= {text.get_text() for text in texts}
    assert not any(text.get_parse_math() for text in texts if "$" in text.get_text())


@pytest.mark.parametrize("kind", [kind for kind in LABELS if kind not in NUMBERS])
def test_labels_of_any_kind_are_covariates(adata, kind):
    adata.obs["label"], groups = LABELS[kind]
    lfm.tl.fit(adata, 0, covariates="label", tol=1e9, key_added="adjusted", progress=False)
    coding = adata.uns["adjusted"]["covariates"]
    assert [coding["reference"].iloc[0], *coding["level"]] == groups


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (["a"] * N, ValueError, "Group 'a' holds every cell"),
        (pd.Categorical(["a"] * N), ValueError, "Group 'a' holds every cell"),
        ([[None, "b", "c"][k] for k in THIRD], ValueError, r"obs\['label'\] is missing in 14 cell\(s\), first"),
        (pd.array([None, *THIRD[1:]], dtype="Int64"), ValueError, r"obs\['label'\] is missing in 1 cell\(s\), first"),
        (pd.array([None, *LETTERS[1:]], dtype="string"), ValueError, r"obs\['label'\] is missing in 1 cell\(s\)"),
        (THIRD + 0.5, TypeError, r"obs\['label'\] holds real numbers"),
        (np.array(["", "b", "c"])[THIRD], ValueError, r"obs\['label'\] has cells whose label is empty"),
        ([[1, "1", "c"][k] for k in THIRD], ValueError, r"labels of different types that are all written '1'"),
        (pd.Categorical([[True, "True"][k % 2] for k in THIRD]), ValueError, "that are all written 'True'"),
    ],
)
def test_labels_that_cannot_be_ranked_are_named(adata, labels, error, message):
    adata.obs["label"] = labels
    with pytest.raises(error, match=message):
        lfm.tl.rank_genes(adata, "label", key_added="new")
    assert "new" not in adata.uns


def test_labels_written_alike_are_no_covariate(adata):
    adata.obs["label"] = [[1, "1", "c"][k] for k in THIRD]
    with pytest.raises(ValueError, match=r"`covariates`: obs\['label'\] holds labels of different types"):
        lfm.tl.fit(adata, 2, covariates="label", progress=False)


@pytest.mark.parametrize(
    ("values", "message"),
    [(THIRD + 1j, "holds complex numbers"), ([[k] for k in THIRD], "holds values of type list")],
)
def test_columns_that_no_plot_can_colour_by(adata, values, message):
    adata.obs["odd"] = values
    with pytest.raises(TypeError, match=rf"`color`: obs\['odd'\] {message}.* Make them labels"):
        lfm.pl.factors(adata, "odd", show=False)
    message = "`color` must be the name of a column of obs or of a gene, or a list of them, found 3"
    for color in (3, [3], ["n1", 3]):
        with pytest.raises(TypeError, match=message):
            lfm.pl.factors(adata, color, show=False)


def test_groups_may_be_named_by_what_the_column_holds(adata):
    adata.obs["number"], adata.obs["logical"] = THIRD, THIRD == 0
    for column, group in (("number", 1), ("number", np.int64(1)), ("logical", True)):
        lfm.tl.rank_genes(adata, column)
        table = lfm.get.rank_genes_df(adata, group)
        pd.testing.assert_frame_equal(table, lfm.get.rank_genes_df(adata, str(group)))
        assert lfm.pl.rank_genes(adata, [group], show=False)[0].get_title() == str(group)
