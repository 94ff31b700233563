from __future__ import annotations

import pytest

import scvi_lfm as lfm


@pytest.fixture
def adata():
    return lfm.datasets.simulate(30, 20, 2, likelihood="negative_binomial", mu=1.0)


@pytest.fixture
def few_steps():
    """Fit with a guide, for three epochs."""

    def fit(adata, guide, **options):
        with pytest.warns(UserWarning, match="did not converge"):
            lfm.tl.fit(adata, 2, engine="pyro", guide=guide, max_epochs=3, progress=False, **options)

    return fit
