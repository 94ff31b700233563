"""What `tl.fit` was asked for, and the plan that follows from it: every argument checked before any work is done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .._context import resolve_device, resolve_rng
from .._settings import settings
from .._validate import check_choice, check_count, check_positive, resolve_mask
from ..data import read_matrix
from ..inference import FitOptions
from ..model.likelihoods import COUNTS
from ..model.priors import check_prior_scales
from ._fit_arguments import (
    check_count_values,
    check_engine_options,
    check_guide_of_normal,
    check_noise,
    check_options_of_likelihood,
    check_shape,
    check_values,
    check_variation,
    choose_batch_size,
    choose_likelihood,
    choose_max_epochs,
    warn_about_empty_genes,
)
from ._size_factors import resolve_size_factors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from anndata import AnnData

    from ..data import CellMatrix

LIKELIHOODS = ("auto", "normal", *COUNTS)
NOISES = ("shared", "gene", "cell_gene")
FAMILIES = ("row_block", "mean_field")
ENGINES = ("natural_gradient", "pyro")
GUIDES = (*FAMILIES, "low_rank", "flow")
LEARNING_RATE = 0.02


@dataclass(frozen=True)
class FitArguments:
    """The arguments of :func:`scvi_lfm.tl.fit`, as they were given."""

    n_factors: int
    layer: str | None
    likelihood: str
    noise: str
    size_factors: np.ndarray | str | None
    mask_var: np.ndarray | str | None
    family: str
    engine: str
    guide: str | Callable[..., Any] | None
    learning_rate: float | None
    prior_scales: Mapping[str, Any] | None
    batch_size: int | None
    max_epochs: int | None
    tol: float
    device: str
    rng: int | np.random.Generator
    progress: bool


@dataclass(frozen=True)
class FitPlan:
    """Checked values, and every choice made."""

    matrix: CellMatrix
    options: FitOptions
    fitted: np.ndarray  # (m,) bool: genes to fit


def plan_fit(adata: AnnData, given: FitArguments) -> FitPlan:
    """Check the arguments and the data, and choose what was left open.

    Raises
    ------
    TypeError, ValueError, KeyError
        An argument or the data cannot be used.
    """
    scales = _check_arguments(given)
    fitted = _genes_to_fit(adata, given)
    matrix = read_matrix(adata, given.layer, genes=fitted)
    likelihood = choose_likelihood(given.likelihood, matrix)
    check_options_of_likelihood(likelihood, given.noise, scales, given.size_factors)
    log_size = None
    if likelihood == "normal":
        check_guide_of_normal(given.guide, FAMILIES)
        check_values(matrix, given.layer, stacklevel=5)
    else:
        check_count_values(matrix, given.layer, likelihood, adata.obs_names, adata.var_names[fitted])
        check_variation(matrix, given.layer)
        warn_about_empty_genes(matrix, given.layer, stacklevel=4)
        log_size = np.log(resolve_size_factors(adata, given.size_factors, matrix))
    size = choose_batch_size(given.batch_size, adata.n_obs, given.n_factors, counts=likelihood != "normal")
    options = FitOptions(
        n_factors=int(given.n_factors),
        likelihood=likelihood,
        noise=given.noise,
        family=given.family,
        prior_scales=scales,
        batch_size=size,
        max_epochs=choose_max_epochs(given.max_epochs, given.engine, -(-adata.n_obs // size)),
        tol=check_positive("tol", given.tol),
        device=resolve_device(given.device),
        dtype=torch.float32,
        seed=int(resolve_rng(given.rng).integers(2**31)),
        progress=given.progress and settings.progress,
        guide=given.guide or given.family,
        learning_rate=LEARNING_RATE if given.learning_rate is None else given.learning_rate,
        log_size=log_size,
    )
    return FitPlan(matrix, options, fitted)


def _check_arguments(given: FitArguments) -> dict[str, object]:
    """Raise unless the arguments are valid by themselves; the prior scales that are fixed."""
    for name, value, choices in (
        ("likelihood", given.likelihood, LIKELIHOODS),
        ("noise", given.noise, NOISES),
        ("family", given.family, FAMILIES),
        ("engine", given.engine, ENGINES),
    ):
        check_choice(name, value, choices)
    check_engine_options(given.engine, given.guide, given.learning_rate, GUIDES)
    scales = check_prior_scales(given.prior_scales, check_count("n_factors", given.n_factors))
    check_noise(given.noise, given.engine, scales)
    return scales


def _genes_to_fit(adata: AnnData, given: FitArguments) -> np.ndarray:
    mask = given.mask_var
    fitted = np.ones(adata.n_vars, dtype=bool) if mask is None else resolve_mask("mask_var", mask, adata.var)
    check_shape(given.n_factors, adata.n_obs, int(fitted.sum()))
    return fitted
