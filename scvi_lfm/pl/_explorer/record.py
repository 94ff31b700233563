"""What `pl.explorer` returns."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

HEIGHT = 720  # of the page in a notebook, in pixels


@dataclass(frozen=True)
class ExplorerPage:
    """A page that :func:`scvi_lfm.pl.explorer` wrote; a notebook shows it.

    Attributes
    ----------
    path
        The file.
    n_cells
        Number of cells on it.
    n_genes
        Number of genes on it: those that were fitted.
    n_bytes
        Size of the file.
    """

    path: Path
    n_cells: int
    n_genes: int
    n_bytes: int

    def __str__(self) -> str:
        return f"{self.path}: {self.n_cells:,} cells, {self.n_genes:,} genes, {self.n_bytes / 1e6:.1f} MB"

    def __fspath__(self) -> str:
        return str(self.path)

    def _repr_html_(self) -> str:
        """A frame with the page, which the notebook's server must reach, and a link to it."""
        here = Path.cwd()
        inside = self.path.is_relative_to(here)
        address = quote(self.path.relative_to(here).as_posix()) if inside else self.path.as_uri()
        source = html.escape(address, quote=True)
        return (
            f'<iframe src="{source}" width="100%" height="{HEIGHT}" style="border: 1px solid #ccc" '
            f'title="scvi_lfm explorer"></iframe><p><a href="{source}" target="_blank">{html.escape(str(self))}</a></p>'
        )
