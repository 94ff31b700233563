"""Fields of a stored fit by their name in the schema, of the shape that it states, as a posterior has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from .lookup import entry, numbers
from .schema import FIELD

if TYPE_CHECKING:
    from anndata import AnnData
    from torch import Tensor

    from .layout import Layout

_WORDS = {"r": "factors", "p": "covariate(s)"}


@dataclass(frozen=True)
class FieldReader:
    """The fields of one fit."""

    adata: AnnData
    key: str
    layout: Layout
    device: torch.device

    def array(self, name: str) -> np.ndarray:
        """A field, float64, for the genes that were fitted and the factors that are on; packed covariances in float32.

        Raises
        ------
        KeyError
            It is not there.
        ValueError
            It is not of the shape that the schema states, or a packed covariance is not finite.
        """
        field = FIELD[name]
        if field.frame == "uns":
            values = np.asarray(entry(self.adata.uns[self.key], name, self.key), dtype=np.float64)
            return self.layout.gather(values, field.shape)
        packed = field.shape[-1].endswith("packed")
        values = numbers(self.adata, field.frame, self.where(name), np.float32 if packed else np.float64)
        width = [len(self.layout.kept(axis)) for axis in field.shape[1:]]
        fits = list(values.shape[1:]) == width
        kept = self.layout.gather(values, field.shape) if fits else values
        if packed and not (fits and np.isfinite(kept).all()):
            msg = (
                f"{self.place(name)} does not hold {width[0]} finite numbers in each row, as the fit stored there: it "
                "was changed or damaged since. Read another copy, or run lfm.tl.fit(adata) again."
            )
            raise ValueError(msg)
        if not fits:
            expected = f"{width[0]} {_WORDS[field.shape[-1]]}" if width else "one number there for each row"
            msg = (
                f"{self.place(name)} has shape {values.shape}, but the fit has {expected}. It was overwritten since; "
                "run lfm.tl.fit again."
            )
            raise ValueError(msg)
        return kept

    def columns(self, *names: str) -> np.ndarray:
        """Fields side by side, (rows, .)."""
        return np.column_stack([self.array(name) for name in names])

    def tensor(self, name: str) -> Tensor:
        """A field on the device."""
        return self.on_device(self.array(name))

    def on_device(self, values: np.ndarray) -> Tensor:
        """An array on the device."""
        # torch takes no array that is read-only, as those of a memory map are
        return torch.as_tensor(values if values.flags.writeable else values.copy(), device=self.device)

    def number(self, name: str) -> float:
        """A number in uns."""
        return float(self.array(name))

    def has(self, name: str) -> bool:
        """Whether a field is there."""
        return self.where(name) in getattr(self.adata, FIELD[name].frame)

    def where(self, name: str) -> str:
        """Name of a field in its frame."""
        return FIELD[name].key(self.key)

    def place(self, name: str) -> str:
        """Place of a field in words."""
        return f"{FIELD[name].frame}[{self.where(name)!r}]"
