"""`scvi-lfm explore`: a page in which cells are selected and their genes ranked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import scvi_lfm as lfm

from .._keys import fit_keys
from ..pl._explorer.target import check_target
from ._files import check_fitted, read_data
from ._messages import CommandError, say

if TYPE_CHECKING:
    import argparse

    import anndata as ad


def explore(arguments: argparse.Namespace) -> None:
    """Write the page."""
    _check_page(arguments)
    adata = read_data(arguments.data, values=False)
    check_fitted(adata, arguments.data, arguments.key)
    page = lfm.pl.explorer(
        adata,
        arguments.page,
        color=arguments.color,
        columns=arguments.columns,
        key=arguments.key,
        title=arguments.title or arguments.data.stem,
        overwrite=arguments.force,
        **_plane(adata, arguments),
    )
    say(f"wrote {page.path} ({page.n_cells:,} cells, {page.n_genes:,} genes, {page.n_bytes / 1e6:.1f} MB)")


def _check_page(arguments: argparse.Namespace) -> None:
    """Raise, before data are read, unless a page can be put where it is asked for."""
    try:
        check_target(arguments.page, overwrite=arguments.force)
    except ValueError as error:
        raise CommandError(str(error).replace("`path`", "PAGE").replace("overwrite=True", "--force")) from error


def _plane(adata: ad.AnnData, arguments: argparse.Namespace) -> dict[str, Any]:
    """Where cells lie: as asked, else in the UMAP, else in the plane of the first two factors."""
    if arguments.basis is not None or "X_umap" in adata.obsm:
        dimensions = None if arguments.dimensions is None else tuple(arguments.dimensions)
        return {"basis": arguments.basis or "X_umap", "dimensions": dimensions}
    return {"basis": fit_keys(arguments.key).cell_factors, "dimensions": tuple(arguments.dimensions or (0, 1))}
