"""What a tool changed in an AnnData: the fields to write into a copy of its file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    import anndata as ad
    import pandas as pd

    # a container of an AnnData, and a name in it
    Place = tuple[str, str]

FRAMES = ("obs", "var")
MAPPINGS = ("obsm", "varm", "obsp", "varp", "layers", "uns")


@dataclass(frozen=True)
class Changes:
    """Fields with their new values, columns as Series, and fields that are no more."""

    written: Mapping[Place, Any]
    removed: tuple[Place, ...] = ()

    def apply(self, adata: ad.AnnData) -> None:
        """Make the same changes in another AnnData of these cells and genes."""
        for container, name in self.removed:
            del getattr(adata, container)[name]
        for (container, name), value in self.written.items():
            getattr(adata, container)[name] = value


@dataclass(frozen=True)
class Snapshot:
    """The fields of an AnnData at one time; tools replace values and never write into them."""

    frames: Mapping[str, pd.DataFrame]
    mappings: Mapping[str, Mapping[str, Any]]

    @classmethod
    def of(cls, adata: ad.AnnData) -> Snapshot:
        """As it is now."""
        return cls(
            {name: getattr(adata, name).copy(deep=False) for name in FRAMES},
            {name: dict(getattr(adata, name)) for name in MAPPINGS},
        )

    def changes(self, adata: ad.AnnData) -> Changes:
        """What has changed since."""
        written, removed = {}, []
        for container, frame in self.frames.items():
            now = getattr(adata, container)
            removed += [(container, name) for name in frame if name not in now]
            for name in now:
                old = frame.get(name)
                if old is None or old.dtype != now[name].dtype or not old.equals(now[name]):
                    written[container, name] = now[name]
        for container, mapping in self.mappings.items():
            values = getattr(adata, container)
            removed += [(container, name) for name in mapping if name not in values]
            for name in values:
                if name not in mapping or values[name] is not mapping[name]:
                    written[container, name] = values[name]
        return Changes(written, tuple(removed))
