"""`scvi-lfm explore`: a page in which cells are selected and their genes ranked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import scvi_lfm as lfm

from .._keys import fit_keys
from ._files import read_data
from ._messages import CommandError, say

if TYPE_CHECKING:
    import argparse

    import anndata as ad

ABOUT = """\
Write a page that a browser opens by a double click, from a stored fit: draw a
lasso around cells, or choose a group, and see their genes.

The page is one file, needs no server and asks the network for nothing. It holds
the fit, the columns of obs with few groups and the names of cells and genes,
and no values of X."""

EXAMPLES = """\
examples:
  scvi-lfm explore fitted.h5ad page.html
  scvi-lfm explore fitted.h5ad page.html --color leiden CD3E
  scvi-lfm explore fitted.h5ad page.html --basis X_pca --dimensions 0 2"""


def add_explore(command: argparse.ArgumentParser) -> None:
    """The options of the command."""
    command.add_argument("data", type=Path, metavar="IN", help="fitted data (.h5ad or .zarr)")
    command.add_argument("page", type=Path, metavar="PAGE", help="page to write (.html)")
    command.add_argument("--key", default="lfm", help="name of the fit")
    command.add_argument(
        "--basis",
        metavar="NAME",
        help="entry of obsm that says where cells lie (default: X_umap if there is one, else the first two factors)",
    )
    command.add_argument(
        "--dimensions", nargs=2, type=int, metavar="N", help="two columns of the basis, counted from 0"
    )
    command.add_argument("--color", nargs="+", metavar="NAME", help="columns of obs, or genes, to colour cells by")
    command.add_argument(
        "--columns", nargs="+", metavar="COLUMN", help="columns of obs to take along (default: all of few groups)"
    )
    command.add_argument("--title", help="title of the page (default: the name of IN)")
    command.add_argument("--force", action="store_true", help="replace a file that is no earlier page")


def explore(arguments: argparse.Namespace) -> None:
    """Write the page."""
    adata = read_data(arguments.data, values=False)
    if arguments.key not in adata.uns:
        msg = f"{arguments.data} holds no fit {arguments.key!r}. Make one: scvi-lfm fit {arguments.data} OUT"
        raise CommandError(msg)
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


def _plane(adata: ad.AnnData, arguments: argparse.Namespace) -> dict[str, Any]:
    """Where cells lie: as asked, else in the UMAP, else in the plane of the first two factors."""
    if arguments.basis is not None or "X_umap" in adata.obsm:
        dimensions = None if arguments.dimensions is None else tuple(arguments.dimensions)
        return {"basis": arguments.basis or "X_umap", "dimensions": dimensions}
    return {"basis": fit_keys(arguments.key).cell_factors, "dimensions": tuple(arguments.dimensions or (0, 1))}
