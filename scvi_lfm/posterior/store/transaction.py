"""Writing into an AnnData: all of it or nothing."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..._calls import warn_user

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData


@contextmanager
def all_or_nothing(adata: AnnData) -> Iterator[None]:
    """Take back what is written inside if an error, or Ctrl-C, comes before it is whole."""
    if adata.is_view:
        _make_actual(adata)
    frames = {name: getattr(adata, name).copy(deep=False) for name in ("obs", "var")}
    mappings = {name: dict(getattr(adata, name)) for name in ("obsm", "varm", "layers", "uns")}
    try:
        yield
    except BaseException:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name, before in (frames | mappings).items():
                setattr(adata, name, before)
            for name, before in frames.items():
                getattr(adata, name).index = before.index  # anndata makes strings of what are none
        raise


def remove(adata: AnnData, container: str, name: str) -> None:
    """Remove a field."""
    fields = getattr(adata, container)
    if hasattr(fields, "__delitem__"):
        del fields[name]
    else:  # obs and var that are read lazily
        setattr(adata, container, fields.ds.drop_vars(name))


def _make_actual(adata: AnnData) -> None:
    from anndata import ImplicitModificationWarning

    msg = "Writing into a view of an AnnData, which is copied first."
    warn_user(ImplicitModificationWarning(msg))
    adata.obs_names = adata.obs_names
