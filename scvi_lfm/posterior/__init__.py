"""The posterior as a frozen record: its moments, gauge, predictions, and the only reader and writer of stored fits."""

from .posterior import CountPosterior, NormalPosterior, Posterior
from .store import StoredFit, read_fit, write_fit
from .stored_gauge import to_stored_gauge

__all__ = [
    "CountPosterior",
    "NormalPosterior",
    "Posterior",
    "StoredFit",
    "read_fit",
    "to_stored_gauge",
    "write_fit",
]
