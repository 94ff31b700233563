"""What `tl.fit` makes of a result: checks before anything is stored, and the record that goes into uns."""

from __future__ import annotations

from dataclasses import replace
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
    VALUES,
    VARIANCE_RATIO,
    VERSION,
)
from ..data.checks import farthest_out
from ..posterior.store.params import params_of
from ._values import record_of_values

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from ..inference import FitOptions, FitResult
    from ..posterior import CountPosterior, NormalPosterior
    from ._fit_prepare import PreparedFit


def record_of(prepared: PreparedFit, result: FitResult, seconds: float) -> dict[str, Any]:
    """Record of a fit: what goes into uns besides the posterior."""
    from .. import __version__

    matrix, n_factors = prepared.matrix, n_factors_of(prepared, result)
    params = params_of(replace(prepared.arguments, n_factors=n_factors))
    epochs, values = zip(*result.elbo, strict=True)
    ratio = np.zeros(n_factors)
    ratio[: len(result.variance_ratio)] = result.variance_ratio
    return {
        PARAMS: params if result.ranks is None else params | {"max_factors": len(result.ranks.elbo) - 1},
        # above 1 only where nothing varies
        VARIANCE_RATIO: ratio.clip(max=1).astype(np.float32),
        ELBO: {"epoch": np.asarray(epochs), "value": np.asarray(values), "rank0": result.elbo_rank0},
        **_held_out_of(result),
        **_rank_of(result, matrix.n_observed),
        **({LEVEL: matrix.level} if matrix.level else {}),
        CONVERGED: result.converged,
        SECONDS: seconds,
        VERSION: __version__,
        **_scale_of_sizes(prepared, result.posterior),
        VALUES: record_of_values(matrix.normalised, prepared.kind, prepared.log_base, result.posterior),
        **({} if prepared.coding is None else {COVARIATES: prepared.coding}),
    }


def n_factors_of(prepared: PreparedFit, result: FitResult) -> int:
    """The number of factors that was asked for, or chosen."""
    return result.posterior.n_factors if prepared.options.choose_rank else prepared.options.n_factors


def _held_out_of(result: FitResult) -> dict[str, Any]:
    """Scores of entries held out after each epoch, and at the end."""
    if result.held_out is None:
        return {}
    epoch, log_density, rmse = map(np.asarray, zip(*result.held_out.values, strict=True))
    trace = {"epoch": epoch, "log_density": log_density, "rmse": rmse, "stopped": result.held_out.stopped}
    return {HELD_OUT: trace}


def _rank_of(result: FitResult, n_entries: int) -> dict[str, Any]:
    """Record of every number of factors, where it was to be chosen."""
    if result.ranks is None:
        return {}
    value, effective = np.asarray(result.ranks.elbo), np.asarray(result.ranks.effective)
    number = np.arange(len(value))
    found = {"n_factors": number, "elbo": value, "effective": effective, "n_entries": n_entries}
    where_known = {"gain_error": result.ranks.gain_error, "held_out_log_density": result.ranks.held_out}
    return {RANK: found | {name: np.asarray(known) for name, known in where_known.items() if known is not None}}


def _scale_of_sizes(prepared: PreparedFit, q: NormalPosterior | CountPosterior) -> dict[str, float]:
    """The total count of a cell with size factor one, in fact and as expected, where size factors are totals."""
    if not q.likelihood.has_rate or prepared.arguments.size_factors is not None:
        return {}
    total = prepared.matrix.summary.total / prepared.matrix.shape[0]
    return {TOTAL_COUNTS: total, EXPECTED_COUNTS: float(q.expected_rates().sum())}


def check_storable(q: NormalPosterior | CountPosterior, cells: pd.Index, genes: pd.Index) -> None:
    """Raise unless float32, in which the fit will be stored, can hold it."""
    of_genes = torch.cat([q.gene_mean, q.gene_cov.diagonals().sqrt(), q.noise.of_genes[:, None]], dim=1)
    for what, values, names in (("cell", q.cell_mean, cells), ("gene", of_genes, genes)):
        bad = (~values.float().isfinite().all(dim=1)).cpu().numpy()
        if bad.any():
            msg = (
                f"The fit of {int(bad.sum())} {what}(s) is not finite, first {what} {names[bad][0]!r}. "
                "Look at its values: they may differ from the others by many orders of magnitude. Nothing was stored."
            )
            raise FloatingPointError(msg)


def broken_down(adata: AnnData, prepared: PreparedFit) -> FloatingPointError:
    """The error of values that no arithmetic of ours can fit."""
    where = farthest_out(prepared.matrix.source, adata.obs_names, adata.var_names[prepared.fitted])
    return FloatingPointError(
        f"The fit broke down numerically: values, {prepared.kind.span}, the one farthest out in {where}, differ from "
        "each other, or from their mean, by too many orders of magnitude, or cells or genes repeat each other exactly. "
        "Look for such values, or rescale the data. Nothing was stored."
    )


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
