"""A fit's fields in an AnnData: one schema, and the only writer and reader."""

from .read import StoredFit, read_fit
from .schema import fit_places
from .write import write_fit

__all__ = ["StoredFit", "fit_places", "read_fit", "write_fit"]
