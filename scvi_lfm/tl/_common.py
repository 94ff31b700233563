"""What several tools need: values that the fit reads, or read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._calls import warn_user
from .._keys import HELD_OUT
from .._validate import near_matches, place_of
from ..data import at_level, read_held_out, restrict

if TYPE_CHECKING:
    from anndata import AnnData

    from ..data import CellMatrix
    from ..posterior import StoredFit

# what stands in `params` for a mask that was passed as a matrix
ARRAY = "array"


def check_closed_form(stored: StoredFit, tool: str) -> None:
    """Raise if the tool has no formula for the likelihood of the fit."""
    likelihood = stored.params.get("likelihood")
    if likelihood == "student_t":
        msg = (
            f"lfm.tl.{tool} has no closed form under likelihood={likelihood!r}. For it, fit the values with "
            "likelihood='normal' too, under another key_added; this fit serves rank_genes, rank_cells, similar_genes, "
            "predict, recommend and sample_posterior."
        )
        raise ValueError(msg)


def layer_of_fit(adata: AnnData, stored: StoredFit, layer: str | None) -> str | None:
    """The layer to read: that of the fit unless another is asked for, which warns."""
    fitted = stored.params.get("layer")
    if layer is None and fitted is not None and fitted not in adata.layers:
        near = near_matches(fitted, adata.layers)
        msg = (
            f"The fit read layers[{fitted!r}], which `adata` does not have. {near} Put values on the same scale there."
        )
        raise KeyError(msg)
    if layer is None or layer == fitted:
        return fitted
    if not isinstance(layer, str) or layer not in adata.layers:
        return layer  # the gate has the words for it
    msg = (
        f"layer={layer!r} is not what the fit read ({'X' if fitted is None else repr(fitted)}); "
        "results mean little unless both are on the same scale."
    )
    warn_user(msg)
    return layer


def less_level_of_fit(matrix: CellMatrix, stored: StoredFit, layer: str | None) -> CellMatrix:
    """The values of `matrix`, read from `layer`, less the level that those of the fit had."""
    if not stored.level:
        return matrix
    law = stored.posterior.law_in_cells(stored.posterior.population(), None)
    spread = float((law.variance().mean() + law.mean().var(correction=0)).sqrt())
    return at_level(matrix, stored.level, place_of(layer), spread=spread)


def observed_of_fit(adata: AnnData, stored: StoredFit, matrix: CellMatrix, layer: str | None) -> CellMatrix:
    """The values of `matrix`, read from `layer`, that were data of the fit, or would have been, less its level."""
    held_out = stored.params.get(HELD_OUT)
    if held_out is not None and held_out not in adata.layers:
        msg = f"The fit left out entries, and the mask that says which, layers[{held_out!r}], is gone. Put it back."
        if held_out == ARRAY:
            msg = (
                "The fit left out entries by a mask that was passed as a matrix, so which they are was not stored. Put "
                "the mask into a layer and fit with its name: lfm.tl.fit(adata, held_out='name')."
            )
        raise KeyError(msg)
    mask = read_held_out(adata, held_out, genes=stored.fitted)
    matrix = restrict(matrix, str(stored.params.get("observed", "all")), mask)
    return less_level_of_fit(matrix, stored, layer)
