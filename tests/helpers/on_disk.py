"""Data written to a file, and opened there."""

from __future__ import annotations

import warnings

import anndata as ad
import pytest


def backed(adata, path):
    adata.write_h5ad(path / "cells.h5ad", compression="gzip")
    return ad.read_h5ad(path / "cells.h5ad", backed="r")


def zarr_store(adata, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata.write_zarr(path / "cells.zarr")
    return path / "cells.zarr"


def lazy_hdf5(adata, path):
    pytest.importorskip("xarray")
    adata.write_h5ad(path / "cells.h5ad")
    return ad.experimental.read_lazy(path / "cells.h5ad")


def lazy_zarr(adata, path):
    pytest.importorskip("xarray")
    return ad.experimental.read_lazy(zarr_store(adata, path))
