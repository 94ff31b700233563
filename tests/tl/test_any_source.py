"""Where the values lie makes no difference: every tool returns the same bits from memory, files and dask arrays."""

from __future__ import annotations

from functools import cache

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scvi_lfm as lfm
from on_disk import backed, lazy_hdf5, lazy_zarr, zarr_store

pytestmark = pytest.mark.usefixtures("nothing_is_read_in")
N, M, NEW = 90, 40, 30
LIKELIHOODS = {
    "values": {"likelihood": "normal"},
    "values in minibatches": {"likelihood": "normal", "batch_size": 32, "covariates": "batch"},
    "values of some genes": {"likelihood": "normal", "mask_var": "some", "noise": "cell_gene"},
    "counts normalised": {"likelihood": "normal", "normalize": 1e4, "batch_size": 32, "held_out": "test"},
    "logs": {"likelihood": "normal", "layer": "logs"},
    "counts": {"likelihood": "negative_binomial", "batch_size": 32},
    "counts held out": {"likelihood": "poisson", "held_out": "test"},
    "levels": {"likelihood": "ordinal", "observed": "stored"},
    "ratings": {"likelihood": "normal", "observed": "stored", "held_out": "test"},
    "zeros and ones": {"likelihood": "bernoulli"},
}


@cache
def made(likelihood: str) -> ad.AnnData:
    """Data of which every choice of arguments finds what it reads; not to be written to."""
    options = LIKELIHOODS[likelihood]
    name = options["likelihood"]
    law = "poisson" if "normalize" in options else {"ordinal": "poisson", "bernoulli": "poisson"}.get(name, name)
    adata = lfm.datasets.simulate(N, M, 2, likelihood=law, mu=0.5)
    rng = np.random.default_rng(4)
    x = adata.X.toarray() if sp.issparse(adata.X) else adata.X
    if options.get("observed") == "stored":
        x = np.where(rng.random(adata.shape) < 0.5, x.clip(1, 4) if name == "ordinal" else x, 0)
    x = sp.csr_matrix(x > 0 if name == "bernoulli" else x, dtype=np.float32)
    adata = ad.AnnData(x, obs=adata.obs[[]], var=adata.var[[]])
    adata.layers["test"] = sp.csr_matrix(rng.random(adata.shape) < 0.05)
    adata.layers["logs"] = x._with_data(np.log1p(np.abs(x.data)))
    adata.obs["batch"] = pd.Categorical(np.array(["a", "b", "c"])[np.arange(N) % 3])
    adata.obs["score"] = rng.normal(size=N)
    adata.var["some"] = np.arange(M) % 4 != 1
    return adata


def in_memory(adata, _):
    return adata.copy()


def in_zarr(adata, path):
    """Sparse datasets of a zarr store, put into an AnnData by hand."""
    import zarr

    store = zarr.open_group(zarr_store(adata, path), mode="r")
    layers = {name: ad.io.sparse_dataset(store["layers"][name]) for name in adata.layers}
    return ad.AnnData(ad.io.sparse_dataset(store["X"]), obs=adata.obs, var=adata.var, layers=layers)


def joined(adata, path):
    """Two files that are read lazily, one after the other."""
    pytest.importorskip("xarray")
    parts, first = [], adata.n_obs * 2 // 5
    for number, cells in enumerate((slice(first), slice(first, None))):
        adata[cells].copy().write_h5ad(path / f"{number}.h5ad")
        parts.append(ad.experimental.read_lazy(path / f"{number}.h5ad"))
    return ad.concat(parts, merge="same")


def chunks(adata, _):
    """Dask arrays in chunks of cells and of genes."""
    array = pytest.importorskip("dask.array")
    adata = adata.copy()
    adata.X = array.from_array(adata.X, chunks=(23, 21), asarray=False)
    for name in adata.layers:
        adata.layers[name] = array.from_array(adata.layers[name], chunks=(N, M), asarray=False)
    return adata


SOURCES = {
    "backed": backed,
    "zarr": in_zarr,
    "lazy HDF5": lazy_hdf5,
    "lazy zarr": lazy_zarr,
    "joined": joined,
    "dask": chunks,
}


def results(adata, new, options):
    """What every tool makes of an AnnData, by tool."""
    lfm.tl.fit(adata, 2, max_epochs=2, progress=False, **options)
    genes = adata.var_names[[0, 2, 7]]
    found = {}
    lfm.tl.anomalies(adata)
    found["anomalies"] = lfm.get.anomalies_df(adata)
    lfm.tl.rank_genes(adata, "batch")
    found["rank_genes"] = lfm.get.rank_genes_df(adata)
    lfm.tl.rank_cells(adata, list(genes))
    found["similar_genes"] = lfm.tl.similar_genes(adata, genes[0])
    report = lfm.tl.check(adata)
    found |= {"calibration": report.calibration, "convergence": report.convergence}
    found["predict"] = lfm.tl.predict(adata, obs_names=list(adata.obs_names[:2]), var_names=list(genes))
    lfm.tl.predict(adata, layer_added="expected")
    found["expected"] = pd.DataFrame(np.asarray(adata.layers["expected"]))
    for name, drawn in lfm.tl.sample_posterior(adata, 2).items():
        found[f"sample_posterior {name}"] = pd.DataFrame(np.reshape(drawn, -1))
    if options.get("observed") == "stored":
        found["recommend"] = lfm.tl.recommend(adata, n_top=3)
    of_fit = {"layer": options.get("layer"), "observed": options.get("observed", "all")}
    lfm.tl.hold_out(adata, key_added="more", **of_fit)
    found["hold_out"] = pd.DataFrame(adata.layers["more"].toarray())
    if options["likelihood"] in {"negative_binomial", "poisson"}:
        lfm.tl.hold_out(adata, by="molecules", key_added="thinned")
        found["molecules"] = pd.DataFrame(adata.layers["thinned_train"].toarray())
    lfm.tl.project(new, adata)
    for name, one in (("fit", adata), ("project", new)):
        obs, var = (
            (one.obs, one.var) if isinstance(one.obs, pd.DataFrame) else (one.obs.to_memory(), one.var.to_memory())
        )
        columns = sorted(set(obs.columns) - {"batch", "score"})
        found |= {f"{name}.obs": obs[columns], f"{name}.var": var[sorted(var.columns)]}
        found |= {f"{name}.{key}": pd.DataFrame(np.asarray(values)) for key, values in one.obsm.items()}
        found |= {f"{name}.{key}": pd.DataFrame(np.asarray(values)) for key, values in one.varm.items()}
    return found


@cache
def expected(likelihood):
    adata = made(likelihood)
    return results(adata.copy(), adata[:NEW].copy(), LIKELIHOODS[likelihood])


def pairs():
    """Every source with every likelihood; what is not slow has each source once."""
    for i, source in enumerate(SOURCES):
        for j, likelihood in enumerate(LIKELIHOODS):
            yield pytest.param(source, likelihood, marks=[] if i == j else pytest.mark.slow)


@pytest.mark.filterwarnings("ignore:The fit did not converge:UserWarning")
@pytest.mark.parametrize(("source", "likelihood"), list(pairs()))
def test_every_tool_returns_the_same_bits(source, likelihood, tmp_path):
    whole, options = made(likelihood), LIKELIHOODS[likelihood]
    (tmp_path / "new").mkdir()
    adata, new = SOURCES[source](whole, tmp_path), SOURCES[source](whole[:NEW].copy(), tmp_path / "new")
    assert not isinstance(adata.X, sp.spmatrix | sp.sparray | np.ndarray)
    found = results(adata, new, options)
    assert list(found) == list(expected(likelihood))
    for name, table in expected(likelihood).items():
        # a lazy layer is made chunk by chunk, and products of other shapes may round otherwise
        exact = name != "expected" or not hasattr(adata.layers["expected"], "dask")
        pd.testing.assert_frame_equal(
            found[name], table, check_exact=exact, obj=name, **({} if exact else {"rtol": 1e-5, "atol": 1e-6})
        )
    assert not isinstance(adata.X, sp.spmatrix | sp.sparray | np.ndarray)
