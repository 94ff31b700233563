"""What several tools need: the layer of the fit, and whether an AnnData is copied."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..posterior import StoredFit


def layer_of_fit(stored: StoredFit, layer: str | None) -> str | None:
    """The layer to read: that of the fit unless another is asked for, which warns."""
    fitted = stored.params.get("layer")
    if layer is None or layer == fitted:
        return fitted
    msg = (
        f"layer={layer!r} is not what the fit read ({'X' if fitted is None else repr(fitted)}); "
        "results mean little unless both are on the same scale."
    )
    warnings.warn(msg, UserWarning, stacklevel=3)
    return layer
