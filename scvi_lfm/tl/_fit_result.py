"""What `tl.fit` makes of a result: checks before anything is stored, and the record that goes into uns."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..posterior.posterior import CountNoise, NormalNoise
from ._size_factors import EXPECTED, TOTAL, expected_rates

if TYPE_CHECKING:
    import pandas as pd

    from ..data import CellMatrix
    from ..inference import FitOptions, FitResult
    from ..posterior import CountPosterior, NormalPosterior
    from ._fit_plan import FitArguments


def record_of(given: FitArguments, options: FitOptions, result: FitResult, seconds: float) -> dict[str, Any]:
    """What goes into uns besides the posterior."""
    from .. import __version__

    epochs, values = zip(*result.elbo, strict=True)
    ratio = np.zeros(options.n_factors)
    ratio[: len(result.variance_ratio)] = result.variance_ratio
    return {
        # absent rather than None: older readers of h5ad cannot hold it
        "params": {name: value for name, value in _params(given, options).items() if value is not None},
        # above 1 only where nothing varies
        "variance_ratio": ratio.clip(max=1).astype(np.float32),
        "elbo": {"epoch": np.asarray(epochs), "value": np.asarray(values), "rank0": result.elbo_rank0},
        "converged": result.converged,
        "seconds": seconds,
        "version": __version__,
    }


def _params(given: FitArguments, options: FitOptions) -> dict[str, Any]:
    """Arguments that reproduce the fit, arrays and programs by a word."""
    black_box = given.engine == "pyro"
    return {
        "n_factors": options.n_factors,
        "layer": given.layer,
        "likelihood": options.likelihood,
        "noise": options.noise if options.likelihood == "normal" else None,
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


def _name_or(value: object, otherwise: str) -> str | None:
    return value if value is None or isinstance(value, str) else otherwise


def scale_of_sizes(matrix: CellMatrix, q: NormalPosterior | CountPosterior, size_factors: object) -> dict[str, float]:
    """The total count of a cell with size factor one, in fact and as expected, where size factors are totals."""
    if isinstance(q.noise, NormalNoise) or size_factors is not None:
        return {}
    total = float(matrix.values.sum(dtype=np.float64)) / matrix.shape[0]
    return {TOTAL: total, EXPECTED: float(expected_rates(q).sum())}


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
    warnings.warn(msg, UserWarning, stacklevel=3)
