"""That nothing written in a figure covers anything else, or is cut off, on the shipped cells and on harder ones."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import scvi_lfm as lfm
from drawn_texts import drawn_texts

WIDEST = 6.4  # inches: in a notebook, wider figures are shrunk, and their letters with them

PLOTS = {
    "anomalies": lfm.pl.anomalies,
    "elbo": lfm.pl.elbo,
    "variance": lfm.pl.variance,
    "rank": lfm.pl.rank,
    "loadings": lfm.pl.loadings,
    "rank_genes": lfm.pl.rank_genes,
    "factors": lambda adata, **more: lfm.pl.factors(adata, "facs_celltype", **more),
    "factors, genes": lambda adata, **more: lfm.pl.factors(adata, ["GNLY", "LYZ", "lfm_a", "CD79A"], **more),
    "uncertainty": lfm.pl.uncertainty,
}


@pytest.fixture(scope="session")
def shipped(pbmc_fitted):
    """The shipped cells with everything that a plot reads."""
    adata = pbmc_fitted.copy()
    numbers = np.arange(31)
    adata.uns["lfm"]["rank"] = {
        "n_factors": numbers,
        "elbo": -0.5 - 1e-5 * (numbers - 10) ** 2,
        "effective": numbers * 0.9,
        "n_entries": adata.n_obs * adata.n_vars,
    }
    lfm.tl.rank_genes(adata, "facs_celltype")
    lfm.tl.anomalies(adata)
    return adata


@pytest.fixture(scope="session")
def crowded(shipped):
    """Sixty factors, forty types of cells, names that are long, alike and many, anomalies on top of each other."""
    adata = shipped[:300, :200].copy()
    rng = np.random.default_rng(0)
    adata.var_names = ["GNLY", "LYZ", "CD79A", *(f"RP{j}-a-gene-of-a-very-long-name.{j}" for j in range(3, 200))]
    adata.obs["facs_celltype"] = [f"CD4+/CD45RA+/CD25- naive or memory {i % 40}" for i in range(300)]
    for container, n in ((adata.obsm, 300), (adata.varm, 200)):
        for key in ("X_lfm", "X_lfm_sd") if n == 300 else ("lfm", "lfm_sd"):
            container[key] = np.abs(rng.normal(size=(n, 60))) if key.endswith("sd") else rng.normal(size=(n, 60))
    share = 0.8 ** np.arange(60)
    adata.uns["lfm"]["variance_ratio"] = 0.3 * share / share.sum()
    names = [f"group {k} of cells with a long name" for k in range(11)]
    rng.shuffle(names)
    record = {field: {} for field in ("names", "scores", "logfoldchanges", "sd", "lfsr")}
    for name in names:
        record["names"][name] = list(rng.permutation(adata.var_names)[:10])
        for field in record.keys() - {"names"}:
            record[field][name] = np.sort(rng.random(10))[::-1]
    fields = {field: pd.DataFrame(columns).to_records(index=False) for field, columns in record.items()}
    adata.uns["rank_genes_lfm"] = {"params": {"reference": "rest", "key": "lfm"}, **fields}
    n = 80
    adata.uns["lfm_anomaly"]["entries"] = pd.DataFrame(
        {
            "cell": rng.choice(adata.obs_names, n),
            "gene": rng.choice(["GNLY", "LYZ"], n),
            "y": rng.integers(3, 6, n).astype(float),
            "expected": rng.normal(4, 0.2, n),
            "p": 0.0,
            "q": 0.0,
            "log_ratio": np.linspace(20, 0, n),
            "lfdr": np.linspace(0, 1, n),
            "direction": "up",
        }
    )
    return adata


def drawn(name, adata, **more):
    return PLOTS[name](adata, return_fig=True, **more)


@pytest.mark.slow
@pytest.mark.parametrize("name", PLOTS)
def test_on_the_shipped_cells(name, shipped):
    figure = drawn(name, shipped, title="My title")
    texts = drawn_texts(figure)
    assert texts.overlaps() == []
    assert texts.cut_off() == []
    assert figure.get_figwidth() <= WIDEST + 1e-6


@pytest.mark.parametrize("name", PLOTS)
@pytest.mark.half_slow
def test_with_many_long_and_repeated_names(name, crowded):
    texts = drawn_texts(drawn(name, crowded, **({"n_labels": 40} if name == "anomalies" else {})))
    assert texts.overlaps() == []
    assert texts.cut_off() == []


@pytest.mark.parametrize("groups", [None, "group 0 of cells with a long name"])
def test_with_the_order_below_the_panels(crowded, groups):
    adata = crowded.copy()
    adata.uns["rank_genes_lfm"]["params"]["rankby"] = "scores/sd"
    texts = drawn_texts(lfm.pl.rank_genes(adata, groups, return_fig=True))
    assert sum("in the order of scores/sd" in words for words in texts.words) == 1
    assert texts.overlaps() == []
    assert texts.cut_off() == []


@pytest.mark.slow
@pytest.mark.parametrize("name", PLOTS)
def test_beside_another_plot(name, shipped):
    """In axes of a figure of the user's, half a notebook wide."""
    if name in {"loadings", "rank_genes", "factors, genes"}:
        pytest.skip("several panels")
    figure, two = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    for axes in two:
        PLOTS[name](shipped, ax=axes, title="My title", show=False)
    assert drawn_texts(figure).overlaps() == []


@pytest.mark.slow
def test_letters_are_no_smaller_than_eight_points(shipped):
    for name in PLOTS:
        for text in drawn(name, shipped).findobj(plt.Text):
            assert text.get_fontsize() >= 8 or not text.get_text()


def test_the_ruler_finds_what_overlaps_and_what_is_cut_off():
    figure = plt.figure()
    for x, text in ((0.1, "one long text"), (0.12, "another"), (0.6, "apart"), (0.99, "over the edge")):
        figure.text(x, 0.5, text)
    figure.text(0.1, 0.5, "unseen", visible=False)
    texts = drawn_texts(figure)
    assert texts.words == ["one long text", "another", "apart", "over the edge"]
    assert texts.overlaps() == [("one long text", "another")]
    assert texts.cut_off() == ["over the edge"]
