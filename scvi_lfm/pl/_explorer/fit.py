"""A stored fit as arrays of a page. `explorer/src/contrast.js` computes with them what `tl.rank_genes` does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..._memory import naming_memory
from ...model.priors import free_coordinates
from ...tl._rank_genes import base_of_logs
from ...tl._similar_genes import population_variances
from .arrays import Payload
from .covariances import STEPS, is_common, of_cells, of_genes

if TYPE_CHECKING:
    from ...posterior import Posterior, StoredFit

SAME = "Scores, sd and lfsr are those of lfm.tl.rank_genes, with the cells' factors rounded to half precision."
CLOSE = (
    "Scores are those of lfm.tl.rank_genes, with the cells' factors rounded to half precision. sd and lfsr take the "
    "mean covariance of the cells{genes} from a compact form; in tests, lfsr was within 0.02 of the exact one."
)
FOLD = {
    True: "Difference of expected log2 rates",
    False: "Approximate log2 fold change of log1p values",
    None: "None: the fit read values that are not log1p",
}


@naming_memory("put the fit into a page")
def fit_payload(stored: StoredFit, names: np.ndarray) -> Payload:
    """The part of a payload that is of the fit; `names` are those of its genes."""
    q = stored.posterior
    first = 1 + q.n_known
    free = free_coordinates(q.cell_mean.shape[1], q.n_known, q.cell_mean.device)
    rows, genes = q.cell_mean[:, free], q.gene_mean[:, free].float()
    cell_cov = of_cells(q.cell_cov, len(rows), free)
    gene_cov, gene_arrays = of_genes(q.gene_cov, q.gene_prior.cov[first:, first:], first)
    scales, columns = _halves(rows.numpy())
    base = base_of_logs(stored)
    header: dict[str, Any] = {
        "n_cells": len(rows),
        "n_genes": len(genes),
        "n_factors": q.n_factors,
        "likelihood": q.likelihood.name.replace("_", " "),
        "mu": q.mu + stored.level,
        "has_rate": q.likelihood.has_rate,
        "log_base": base,
        "cell_scales": scales,
        "cell_cov_steps": cell_cov.steps,
        "gene_cov": gene_cov,
        "correlation_steps": STEPS,
        "eta": _eta(q),
        "exact": _exactness(q),
    }
    arrays: dict[str, np.ndarray | list[str]] = {f"cell_{c}": column for c, column in enumerate(columns)}
    arrays |= {f"cell_cov_{c}": column for c, column in enumerate(cell_cov.coefficients)}
    arrays |= {
        "cell_covs": cell_cov.matrices,
        "genes": genes.numpy(),
        **gene_arrays,
        "population": q.cell_prior.cov[first:, first:].numpy(),
        "gene_population_variance": population_variances(q).numpy(),
        "gene_names": [str(name) for name in names],
    }
    return Payload(header, arrays)


def fold_note(header: dict[str, Any]) -> str:
    """What the page says of its fold changes."""
    return FOLD[True if header["has_rate"] else (None if header["log_base"] is None else False)]


def _halves(rows: np.ndarray) -> tuple[list[float], list[np.ndarray]]:
    """Columns in half precision, each over its largest absolute value: factors may be of any scale."""
    scales = np.abs(rows).max(0)
    scales[scales == 0] = 1
    return scales.tolist(), [column.astype(np.float16) for column in (rows / scales).T]


def _eta(q: Posterior) -> str:
    what = "expected value" if q.likelihood.linear else "expected log rate" if q.likelihood.has_rate else "expected eta"
    return f"{what}, at the average of the covariates," if q.n_known else what


def _exactness(q: Posterior) -> str:
    if is_common(q.cell_cov) and not q.gene_cov.by_row:
        return SAME
    return CLOSE.format(genes=" and the genes' covariances" if q.gene_cov.by_row else "")
