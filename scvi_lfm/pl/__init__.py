"""Plots: one public function a file, each drawing a table of `lfm.get`."""

from ._anomalies import anomalies
from ._calibration import calibration
from ._elbo import elbo
from ._explorer import ExplorerPage as ExplorerPage
from ._explorer import explorer
from ._factors import factors
from ._loadings import loadings
from ._rank import rank
from ._rank_genes import rank_genes
from ._uncertainty import uncertainty
from ._variance import variance

__all__ = [
    "anomalies",
    "calibration",
    "elbo",
    "explorer",
    "factors",
    "loadings",
    "rank",
    "rank_genes",
    "uncertainty",
    "variance",
]


def __dir__() -> list[str]:
    return sorted([*__all__, "ExplorerPage"])
