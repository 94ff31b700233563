"""Tools: one public function a file."""

from ._anomalies import anomalies
from ._check import CheckReport as CheckReport
from ._check import check
from ._fit import fit
from ._hold_out import hold_out
from ._predict import predict
from ._project import project
from ._rank_cells import rank_cells
from ._rank_genes import rank_genes
from ._recommend import recommend
from ._sample_posterior import sample_posterior
from ._similar_genes import similar_genes

__all__ = [
    "anomalies",
    "check",
    "fit",
    "hold_out",
    "predict",
    "project",
    "rank_cells",
    "rank_genes",
    "recommend",
    "sample_posterior",
    "similar_genes",
]


def __dir__() -> list[str]:
    return sorted([*__all__, "CheckReport"])
