"""What `tl.fit` makes of a result: checks before anything is stored, and the record that goes into uns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .._calls import warn_user
from .._keys import (
    CONVERGED,
    COVARIATES,
    ELBO,
    EXPECTED_COUNTS,
    HELD_OUT,
    LEVEL,
    PARAMS,
    RANK,
    SECONDS,
    TOTAL_COUNTS,
    VARIANCE_RATIO,
    VERSION,
)
from ..model.likelihoods import CONTINUOUS
from ..model.noise import CountNoise

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from ..data import CellMatrix
    from ..inference import FitOptions, FitResult
    from ..posterior import CountPosterior, NormalPosterior
    from ._given import FitArguments


def record_of(
    given: FitArguments, options: FitOptions, result: FitResult, seconds: float, matrix: CellMatrix
) -> dict[str, Any]:
    """What goes into uns besides the posterior."""
    from .. import __version__

    epochs, values = zip(*result.elbo, strict=True)
    ratio = np.zeros(options.n_factors)
    ratio[: len(result.variance_ratio)] = result.variance_ratio
    return {
        # absent rather than None: older readers of h5ad cannot hold it
        PARAMS: {name: value for name, value in _params(given, options, result).items() if value is not None},
        # above 1 only where nothing varies
        VARIANCE_RATIO: ratio.clip(max=1).astype(np.float32),
        ELBO: {"epoch": np.asarray(epochs), "value": np.asarray(values), "rank0": result.elbo_rank0},
        **_held_out_of(result),
        **_rank_of(result, matrix.n_observed),
        **({LEVEL: matrix.level} if matrix.level else {}),
        CONVERGED: result.converged,
        SECONDS: seconds,
        VERSION: __version__,
    }


def _held_out_of(result: FitResult) -> dict[str, Any]:
    """How well entries held out were predicted after each epoch, and at the end."""
    if result.held_out is None:
        return {}
    epoch, log_density, rmse = map(np.asarray, zip(*result.held_out.values, strict=True))
    trace = {"epoch": epoch, "log_density": log_density, "rmse": rmse, "stopped": result.held_out.stopped}
    return {HELD_OUT: trace}


def _rank_of(result: FitResult, n_entries: int) -> dict[str, Any]:
    """What is known of every number of factors, where it was to be chosen."""
    if result.ranks is None:
        return {}
    value, effective = np.asarray(result.ranks.elbo), np.asarray(result.ranks.effective)
    number = np.arange(len(value))
    held_out = {} if result.ranks.held_out is None else {"held_out_log_density": np.asarray(result.ranks.held_out)}
    return {RANK: {"n_factors": number, "elbo": value, "effective": effective, "n_entries": n_entries} | held_out}


def _params(given: FitArguments, options: FitOptions, result: FitResult) -> dict[str, Any]:
    """Arguments that reproduce the fit, arrays and programs by a word."""
    black_box = given.engine == "pyro"
    return {
        "n_factors": options.n_factors,
        "max_factors": None if result.ranks is None else len(result.ranks.elbo) - 1,
        "layer": given.layer,
        "likelihood": options.likelihood,
        "noise": options.noise if options.likelihood in CONTINUOUS else None,
        "observed": given.observed,
        HELD_OUT: _name_or(given.held_out, "array"),
        COVARIATES: _names(given.covariates),
        "size_factors": _name_or(given.size_factors, "array"),
        "mask_var": _name_or(given.mask_var, "array"),
        "family": options.family,
        "engine": given.engine,
        "guide": _name_or(options.guide, "callable") if black_box else None,
        "learning_rate": options.learning_rate if black_box else None,
        "prior_scales": {name: np.array(value, dtype=float)[()] for name, value in options.prior_scales.items()}
        or None,
        "batch_size": options.batch_size,
        "max_epochs": options.max_epochs,
        "tol": float(options.tol),
        "device": str(options.device),
        "rng": None if isinstance(given.rng, np.random.Generator) else int(given.rng),
    }


def _names(columns: Sequence[str] | str | None) -> np.ndarray | None:
    if columns is None:
        return None
    return np.array([columns] if isinstance(columns, str) else list(columns), dtype=object)


def _name_or(value: object, otherwise: str) -> str | None:
    return value if value is None or isinstance(value, str) else otherwise


def scale_of_sizes(matrix: CellMatrix, q: NormalPosterior | CountPosterior, size_factors: object) -> dict[str, float]:
    """The total count of a cell with size factor one, in fact and as expected, where size factors are totals."""
    if not q.likelihood.has_rate or size_factors is not None:
        return {}
    total = matrix.summary.total / matrix.shape[0]
    return {TOTAL_COUNTS: total, EXPECTED_COUNTS: float(q.expected_rates().sum())}


def check_finite(q: NormalPosterior | CountPosterior, cells: pd.Index, genes: pd.Index) -> None:
    """Raise unless float32, in which the fit will be stored, can hold it."""
    noise = q.noise.dispersion if isinstance(q.noise, CountNoise) else q.noise.predictive
    of_genes = torch.cat([q.gene_mean, q.gene_cov.diagonals().sqrt(), noise[:, None]], dim=1)
    for what, values, names in (("cell", q.cell_mean, cells), ("gene", of_genes, genes)):
        bad = (~values.float().isfinite().all(dim=1)).cpu().numpy()
        if bad.any():
            msg = (
                f"The fit of {int(bad.sum())} {what}(s) is not finite, first {what} {names[bad][0]!r}. "
                "Look at its values: they may differ from the others by many orders of magnitude. Nothing was stored."
            )
            raise FloatingPointError(msg)


def warn_not_converged(result: FitResult, options: FitOptions) -> None:
    """Warn that the fit ran out of epochs."""
    msg = (
        f"The fit did not converge to tol={options.tol:g} in {options.max_epochs} epoch(s): results are usable but can "
        "be improved. Pass a larger max_epochs, or a larger tol to accept this."
    )
    warn_user(msg)


def warn_at_bound(result: FitResult, options: FitOptions) -> None:
    """Warn if the number of factors that was chosen is the most that were tried."""
    if result.ranks is not None and result.ranks.best == options.n_factors:
        msg = (
            f"The ELBO still rises at {options.n_factors} factors, the most that n_factors='auto' tries on these data. "
            f"Pass a larger number as n_factors=, or n_factors={options.n_factors} to accept this one."
        )
        warn_user(msg)
