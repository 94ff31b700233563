"""What every tool begins with: the fit that it asks, and the values that it holds against the fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .._context import resolve_device
from .._fit_arguments import ARRAY
from .._validate import place_of
from ..data import at_level, read_held_out, restrict
from ..posterior import read_fit
from ._values import read_as_fitted

if TYPE_CHECKING:
    import numpy as np
    import scipy.sparse as sp
    from anndata import AnnData
    from torch import Tensor

    from ..data import CellMatrix
    from ..posterior import StoredFit


@dataclass(frozen=True)
class Values:
    """Values of the fit's kind: those that were data of it, or would have been, less its level."""

    matrix: CellMatrix
    layer: str | None  # that they were read from


def open_fit(
    adata: AnnData, key: str, device: str = "cpu", *, closed_form_for: str | None = None, cells: bool = True
) -> StoredFit:
    """The fit stored under `key`, on a device; `cells=False` does without the embedding of the cells.

    Raises
    ------
    KeyError, TypeError, ValueError
        There is no such fit or device, its fields do not belong together, or the tool that it is wanted for has no
        closed form under its likelihood.
    """
    stored = read_fit(adata, key, device=resolve_device(device), cells=cells)
    if closed_form_for is not None and stored.posterior.likelihood.name == "student_t":
        msg = (
            f"lfm.tl.{closed_form_for} has no closed form under likelihood='student_t'. For it, fit the values with "
            "likelihood='normal' too, under another key_added; this fit serves rank_genes, rank_cells, similar_genes, "
            "predict, recommend and sample_posterior."
        )
        raise ValueError(msg)
    return stored


def open_values(
    adata: AnnData, stored: StoredFit, layer: str | None, *, new: tuple[np.ndarray, Tensor] | None = None
) -> Values:
    """Values to hold against a fit.

    Parameters
    ----------
    adata
        Annotated data, fitted or new.
    stored
        The fit.
    layer
        Layer to read; None means the one that the fit read.
    new
        For new cells: which of their genes the fit has, (m,) bool, and where it has them.

    Raises
    ------
    KeyError
        There is no such layer, or the mask of held-out entries is gone.
    TypeError, ValueError
        The values cannot be used, or are of another kind than those of the fit.
    """
    whole = stored.posterior
    genes, q = (stored.fitted, whole) if new is None else (new[0], whole.at_genes(new[1]))
    # new counts come with their own depth
    expected = q.expected_values() if new is None or not q.likelihood.has_rate else None
    matrix, layer = read_as_fitted(adata, stored, layer, genes=genes, expected=expected, new=new is not None)
    mask = _held_out_of(adata, stored) if new is None else None
    matrix = restrict(matrix, stored.arguments.observed, mask)
    if stored.level:
        law = whole.law_on_average()
        spread = float((law.variance().mean() + law.mean().var(correction=0)).sqrt())
        matrix = at_level(matrix, stored.level, place_of(layer), spread=spread)
    return Values(matrix, layer)


def _held_out_of(adata: AnnData, stored: StoredFit) -> sp.csr_array | None:
    """The entries that the fit left out, at its genes."""
    held_out = stored.arguments.held_out
    if held_out is not None and held_out not in adata.layers:
        msg = f"The fit left out entries, and the mask that says which, layers[{held_out!r}], is gone. Put it back."
        if held_out == ARRAY:
            msg = (
                "The fit left out entries by a mask that was passed as a matrix, so which they are was not stored. Put "
                "the mask into a layer and fit with its name: lfm.tl.fit(adata, held_out='name')."
            )
        raise KeyError(msg)
    return read_held_out(adata, held_out, genes=stored.fitted)
