"""Convergence of `tl.check`: the fit is repeated once, from another start, and the two are compared."""

from __future__ import annotations

import math
import warnings
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
import torch

from .._keys import ELBO
from .._memory import naming_memory
from .._validate import resolve_rng
from ..inference import FitOptions, FitResult, fit_natural_gradient
from ..model.priors import check_prior_scales
from ..posterior.predictive import eta_of_pairs, mean_of_pairs
from ..posterior.store.lookup import entry
from ._fit_checks import check_shape
from ._fit_result import check_storable

if TYPE_CHECKING:
    from anndata import AnnData
    from torch import Tensor

    from ..data import CellMatrix
    from ..model.noise import CountNoise
    from ..posterior import StoredFit
    from ..posterior.posterior import Posterior

PAIRS = 20_000
# epochs of the fit that is repeated, as a multiple of those that it took; and its tolerance where batches stay the same
LONGER, CLOSER = 1.25, 5


@naming_memory("check the fit")
def compare_fits(adata: AnnData, matrix: CellMatrix, stored: StoredFit, seed: int, *, refit: bool) -> pd.DataFrame:
    """The report's `convergence`."""
    given, key = stored.arguments, stored.keys.uns
    trace = entry(adata.uns[key], ELBO, key)
    rank0, size = float(entry(trace, "rank0", key)), cast("int", given.batch_size)
    rows = [_row("this one", given.rng, size, float(entry(trace, "value", key)[-1]), 0.0)]
    if refit and given.engine == "natural_gradient":
        options = options_again(matrix, stored, seed, float(entry(trace, "epoch", key)[-1]))
        result = _fit_again(matrix, stored, options)
        check_storable(result.posterior, adata.obs_names, adata.var_names[stored.fitted])
        difference = eta_difference(stored.posterior, result.posterior, seed)
        rows.append(_row("other seed", seed, options.batch_size, result.elbo[-1][1], difference))
    table = pd.DataFrame(rows)
    best = table["elbo"].max()
    gained = best - rank0
    table["gap"] = (best - table["elbo"]) / gained if gained > 0 and len(table) > 1 else np.nan
    return table[["fit", "seed", "batch_size", "elbo", "gap", "eta_difference"]]


def _row(name: str, seed: object, batch_size: int, value: float, difference: float) -> dict[str, Any]:
    return {"fit": name, "seed": seed, "batch_size": batch_size, "elbo": value, "eta_difference": difference}


def options_again(matrix: CellMatrix, stored: StoredFit, seed: int, epochs: float) -> FitOptions:
    """Options of the fit, which took some epochs, with another seed and what shows gains that it may have missed.

    That is batches of half the size; for the Normal, whose small batches settle late, a smaller tolerance.
    """
    given, noise = stored.arguments, stored.posterior.noise
    n_factors, likelihood = int(given.n_factors), stored.posterior.likelihood
    check_shape(n_factors, *matrix.shape)
    size = min(cast("int", given.batch_size), matrix.shape[0])
    own = {
        "n_factors": n_factors,
        "prior_scales": check_prior_scales(given.prior_scales, n_factors),
        "batch_size": size if likelihood.linear else _half(size, matrix.shape[0], n_factors),
        "max_epochs": min(cast("float", given.max_epochs), math.ceil(LONGER * epochs)),
        "tol": given.tol / CLOSER if likelihood.linear else given.tol,
        "device": stored.device,
        "checkpoint": None,
        "progress": False,
    }
    known = given.named([each.name for each in fields(FitOptions)])
    return FitOptions(
        **{name: value for name, value in known.items() if value is not None} | own,
        dtype=torch.float32,
        seed=int(resolve_rng(seed).integers(2**31)),  # as the fit makes it of `rng`
        log_size=noise.offset(slice(None)).cpu().numpy() if likelihood.has_rate else None,
        levels=_extremes(cast("CountNoise", noise)) if likelihood.has_levels else None,
    )


def _half(size: int, n_cells: int, n_factors: int) -> int:
    """Cells in each of twice the batches, if that is as many as there are factors."""
    return -(-n_cells // max(1, min(2 * -(-n_cells // size), n_cells // max(n_factors, 2))))


def _extremes(noise: CountNoise) -> tuple[float, float]:
    """The lowest and the highest of ordinal values."""
    levels = cast("Tensor", noise.levels)
    return float(levels[0]), float(levels[0]) + len(levels) - 1


def _fit_again(matrix: CellMatrix, stored: StoredFit, options: FitOptions) -> FitResult:
    """A fit of the values that were read, where they lie."""
    q = stored.posterior
    if q.n_known:
        matrix = replace(matrix, covariates=q.cell_mean[:, 1 : 1 + q.n_known].cpu().numpy())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what there was to say was said by the fit itself
        return fit_natural_gradient(matrix, options)


def eta_difference(q: Posterior, again: Posterior, seed: int) -> float:
    """Root mean square difference of eta over some entries, in posterior standard deviations."""
    rng = np.random.default_rng(seed)
    cells, genes = (torch.from_numpy(rng.integers(len(rows), size=PAIRS)) for rows in (q.cell_mean, q.gene_mean))
    cells, genes = cells.to(q.cell_mean.device), genes.to(q.cell_mean.device)
    mine, theirs = eta_of_pairs(q, cells, genes), mean_of_pairs(again, cells, genes)
    return float(((mine.mean - theirs).square() / mine.var).mean().sqrt())
