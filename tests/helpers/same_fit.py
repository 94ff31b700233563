"""Whether two fits hold the same bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import anndata as ad


FRAMES = ("obs", "var", "obsm", "varm")


def same_fit(one: ad.AnnData, other: ad.AnnData, key: str = "lfm") -> bool:
    """Whether all that is stored under `key` for cells and genes is the same, and the same is stored."""
    first, second = (
        {(frame, name): values for frame in FRAMES for name, values in getattr(fit, frame).items() if _is_of(name, key)}
        for fit in (one, other)
    )
    same = (np.array_equal(values, second[place], equal_nan=True) for place, values in first.items())
    return first.keys() == second.keys() and all(same)


def _is_of(name: str, key: str) -> bool:
    return key in name.split("_")
