"""What several tools need: the layer of the fit, and a key that overwrites no fit."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

from .._validate import check_key, near_matches

if TYPE_CHECKING:
    from anndata import AnnData

    from ..posterior import StoredFit


def check_result_key(adata: AnnData, key_added: str) -> None:
    """Raise unless results can be stored in `uns[key_added]`: a fit there would be lost."""
    present = adata.uns.get(check_key("key_added", key_added))
    if isinstance(present, Mapping) and "prior_gene_cov" in present:
        msg = f"`key_added`: uns[{key_added!r}] holds a fit, which would be overwritten. Pass another key_added."
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
    warnings.warn(msg, UserWarning, stacklevel=3)
    return layer
