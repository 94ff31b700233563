"""A page in which cells are selected and their genes ranked: `explorer.js` comes from the folder explorer/."""

from .call import explorer
from .record import ExplorerPage

__all__ = ["ExplorerPage", "explorer"]
