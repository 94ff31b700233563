from __future__ import annotations

import gc
import logging
import os
import sys
from collections import defaultdict
from functools import cache
from typing import TYPE_CHECKING

# One thread a process, unless the user asks for more: on matrices as small as the tests', threads only wait for each
# other. Libraries read this when they are first imported, and subprocesses inherit it. numba is in the list because its
# first parallel loop (in scanpy) sets the number of threads of OpenMP, and so of torch, to its own.
_threads = os.environ.setdefault("OMP_NUM_THREADS", "1")
for _library in ("MKL", "OPENBLAS", "NUMBA"):
    os.environ.setdefault(f"{_library}_NUM_THREADS", _threads)
# Where there are more, they sleep while they wait: on a busy machine spinning takes nearly all of the processor time.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import matplotlib  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import scipy.sparse as sp  # noqa: E402
from hypothesis import settings  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import anndata as ad

    from scvi_lfm._settings import Settings

matplotlib.use("Agg")

# The same examples in every run, and no time limit for one of them on a busy machine.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


MAX_WORKERS = 8  # each imports the libraries and makes the shared fits anew


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Run the whole suite on every core; what the command line names, in one process; either way if `-n` says so."""
    option = config.option
    whole = config.args_source == pytest.Config.ArgsSource.TESTPATHS and not hasattr(config, "workerinput")
    watched = option.usepdb or option.trace or option.capture == "no"
    # without pytest-xdist there is no such option, and `-n 0` is not None
    if whole and not watched and getattr(option, "numprocesses", 0) is None and not option.tx:
        option.numprocesses = "auto"
        option.maxprocesses = option.maxprocesses or MAX_WORKERS
        if option.dist == "no":
            option.dist = "worksteal"


def pytest_configure(config: pytest.Config) -> None:
    about = "half of its combinations of parameters are slow: those whose values' places in their lists have an odd sum"
    config.addinivalue_line("markers", f"half_slow: {about}")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What is imported and collected stays to the end: the collector of garbage looks at none of it, then or later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # what is left in every run has every choice of every parameter and, of three or more, every two together
    places = defaultdict(dict)
    for item in items:
        if item.get_closest_marker("half_slow"):
            seen = [(places[item.function, name], id(value)) for name, value in item.callspec.params.items()]
            if sum(place.setdefault(value, len(place)) for place, value in seen) % 2:
                item.add_marker(pytest.mark.slow)
    needs_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not needs_gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in needs_gpu:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and torch finds none on this machine"))


@pytest.fixture(autouse=True, scope="session")
def sweeps_at_the_start(request: pytest.FixtureRequest) -> Iterator[int]:
    """Fits of counts begin as fits of some millions of entries do: a third of a small fit's time goes into more sweeps.

    Where slow tests run too, small fits take as many as they do elsewhere. Returns how many that are.
    """
    from scvi_lfm.inference.counts import start

    with pytest.MonkeyPatch.context() as patch:
        most = start.MOST_SWEEPS
        if not any(item.get_closest_marker("slow") for item in request.session.items):
            patch.setattr(start, "MOST_SWEEPS", start.LEAST_WITH_COVARIATES)
        yield most


@pytest.fixture(autouse=True)
def settings_stay() -> Iterator[None]:
    """No test leaves other settings, or another logger, to those that come after it in its process."""
    from scvi_lfm import settings

    logger = logging.getLogger("scvi_lfm")
    before = dict(vars(settings)), logger.level, list(logger.handlers)
    yield
    assert (dict(vars(settings)), logger.level, list(logger.handlers)) == before


@pytest.fixture(name="settings")
def settings_of_a_test() -> Iterator[Settings]:
    """The settings, which are as they were after a test, and the package's logger too."""
    from scvi_lfm import settings

    logger = logging.getLogger("scvi_lfm")
    before, level, handlers = dict(vars(settings)), logger.level, list(logger.handlers)
    yield settings
    vars(settings).update(before)
    logger.setLevel(level)
    logger.handlers[:] = handlers


@pytest.fixture(scope="session")
def pbmc_lognorm() -> ad.AnnData:
    """The shipped cells, log-normalised. Shared by all tests: copy before writing into it."""
    import scanpy as sc

    import scvi_lfm as lfm

    adata = lfm.datasets.pbmc_sorted()
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    return adata


@pytest.fixture(scope="session")
def pbmc_fitted(pbmc_lognorm: ad.AnnData) -> ad.AnnData:
    """The shipped cells with ten factors. Shared: copy before writing into it."""
    import scvi_lfm as lfm

    adata = pbmc_lognorm.copy()
    lfm.tl.fit(adata, 10, progress=False)
    return adata


@pytest.fixture(scope="session")
def fit_of() -> Callable[..., ad.AnnData]:
    """A copy of a fit of two factors to 40 cells x 30 genes, by its likelihood and options; made when first asked for.

    `obs["odd"]` may be a covariate and `layers["test"]` held out; with `observed="stored"` half the entries are stored.
    """
    import scvi_lfm as lfm

    @cache
    def made(likelihood: str, options: tuple[tuple[str, object], ...]) -> ad.AnnData:
        levels = likelihood == "ordinal"
        adata = lfm.datasets.simulate(40, 30, 2, mu=1, likelihood="poisson" if levels else likelihood)
        adata.X = adata.X.minimum(adata.X.sign() * 4) if levels else adata.X
        adata.obs["odd"] = np.arange(40) % 2 == 1
        adata.layers["test"] = sp.csr_matrix(np.eye(40, 30, dtype=bool))
        if dict(options).get("observed") == "stored":
            stored = np.nonzero(np.indices(adata.shape).sum(0) % 2 == 0)
            adata.X = sp.csr_matrix((adata.to_df().to_numpy()[stored], stored), shape=adata.shape)
        lfm.tl.fit(adata, 2, likelihood=likelihood, progress=False, **dict(options))
        return adata

    return lambda likelihood="normal", **options: made(likelihood, tuple(sorted(options.items()))).copy()


@pytest.fixture(scope="session")
def true_eta():
    """The true eta of a data set from `lfm.datasets.simulate`."""
    from simulated import true_eta

    return true_eta


@pytest.fixture(scope="session")
def eta_moments():
    """Mean and variance of each `eta_ij = mu + a_i + b_j + A_i . B_j`, term by term from dense covariances."""

    def moments(
        mu: float, cells: np.ndarray, cell_cov: np.ndarray, genes: np.ndarray, gene_covs: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        a, A = cells[:, 0], cells[:, 1:]
        b, B = genes[:, 0], genes[:, 1:]
        mean = mu + a[:, None] + b + A @ B.T
        var = np.empty_like(mean)
        for j, T in enumerate(gene_covs):
            from_cell = cell_cov[0, 0] + 2 * B[j] @ cell_cov[1:, 0] + B[j] @ cell_cov[1:, 1:] @ B[j]
            from_gene = T[0, 0] + 2 * A @ T[1:, 0] + ((A @ T[1:, 1:]) * A).sum(1)
            var[:, j] = from_cell + from_gene + np.trace(cell_cov[1:, 1:] @ T[1:, 1:])
        return mean, var

    return moments


@pytest.fixture(scope="session")
def dense():
    """The covariance of every row, (rows, k, k), written out from the parts of its record."""
    import torch

    from scvi_lfm.linalg.covariances import Common, Eigenbasis, Packed
    from triangles import unpacked

    def matrices(cov: Common | Eigenbasis | Packed) -> torch.Tensor:
        if isinstance(cov, Common):
            return torch.stack([cov.matrix] * cov.n_rows)
        if isinstance(cov, Eigenbasis):
            diagonal = 1 / (cov.eig / cov.sigma[:, None] ** 2 + 1)
            return torch.einsum("ik,jk,lk->jil", cov.basis, diagonal, cov.basis)
        return torch.from_numpy(unpacked(cov.values)).to(cov.values.dtype)

    return matrices


@pytest.fixture(autouse=True)
def close_figures():
    """Close what a test has drawn: matplotlib warns of more than twenty open figures in a process."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
