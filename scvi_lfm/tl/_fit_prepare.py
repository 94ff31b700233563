"""What `tl.fit` was asked for and all that follows from it: every argument checked before any work is done."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from .._context import prepare_threads, resolve_device, resolve_rng
from .._fit_arguments import AUTO, FitArguments
from .._settings import logger, settings
from .._validate import check_count, in_memory, place_of, resolve_mask
from ..data import at_level, code, common_level, learn_coding, read_matrix
from ..data.kind import ValueKind, log_base
from ..inference import FitOptions
from ..model import likelihoods
from ..model.likelihoods import CONTINUOUS, COUNTS
from ..model.priors import check_prior_scales
from ._fit_checkpoint import check_checkpoint
from ._fit_checks import (
    LEARNING_RATE,
    check_auto,
    check_count_values,
    check_engine_options,
    check_guide_of_normal,
    check_levels,
    check_noise,
    check_options_of_likelihood,
    check_shape,
    check_takes_covariates,
    check_values,
    check_variation,
    checked,
    choose_batch_size,
    choose_likelihood,
    choose_max_epochs,
    most_factors,
    warn_about_codes,
    warn_about_empty_genes,
)
from ._fit_observed import check_cov_bytes, check_stored_variation, observed_part, warn_about_observed
from ._fit_values import check_normalize, looks_of, warn_about_kind
from ._size_factors import resolve_size_factors

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from ..data import CellMatrix
    from ..data.counted import Sample


@dataclass(frozen=True)
class PreparedFit:
    """Checked values, and every choice made."""

    matrix: CellMatrix
    arguments: FitArguments  # with every choice made
    options: FitOptions
    fitted: np.ndarray  # (m,) bool: genes to fit
    kind: ValueKind  # of all values that were read
    log_base: float | None  # None where they are no logs
    coding: pd.DataFrame | None = None  # of the covariates

    @property
    def totals(self) -> np.ndarray | None:
        """Those that the cells were normalised from, (n,)."""
        return None if self.matrix.normalised is None else self.matrix.normalised.totals


def prepare_fit(adata: AnnData, given: FitArguments, some: Sample | None = None) -> PreparedFit:
    """Check the arguments and the data, and choose what was left open.

    With a sample, values of its cells alone are read and judged, without a warning; choices are those for all.

    Raises
    ------
    TypeError, ValueError, KeyError
        An argument or the data cannot be used.
    """
    given = checked(given)
    scales = _check_together(given)
    prepare_threads()
    fitted = _genes_to_fit(adata, given)
    obs = None if given.covariates is None else in_memory(adata.obs)
    coding = None if obs is None else learn_coding(obs, given.covariates)
    stored_only = given.observed == "stored"
    matrix = read_matrix(
        adata, given.layer, genes=fitted, normalize=given.normalize, stored_only=stored_only, some=some
    )
    kind = cast("ValueKind", matrix.kind)
    normalised = matrix.normalised
    if obs is not None and coding is not None:
        known = code(obs, coding)
        if some is None:
            warn_about_codes(obs, coding)
        matrix = replace(matrix, covariates=known if some is None else known[some.cells])
    never_counts = stored_only or normalised is not None
    likelihood = choose_likelihood(given.likelihood, kind, never_counts=never_counts)
    like_logs = likelihood in CONTINUOUS and not stored_only
    looks = looks_of(matrix, kind) if like_logs else None
    check_options_of_likelihood(likelihood, given.engine, given.noise, scales, given.size_factors)
    if likelihood not in CONTINUOUS:  # held-out values too: they are to be predicted
        check_count_values(matrix, given.layer, likelihood, adata.obs_names, adata.var_names[fitted])
    levels = check_levels(kind, given.layer) if likelihoods.LIKELIHOODS[likelihood].has_levels else None
    matrix = observed_part(adata, given, likelihood, matrix, fitted, some)
    if likelihood in CONTINUOUS:
        check_guide_of_normal(given.guide, likelihood)
    if some is None:
        _check_data(adata, given, likelihood, matrix, fitted)
        warn_about_kind(looks, normalised.kind if normalised else kind, given.layer, likelihood)
    log_size = None
    if likelihood in COUNTS:
        log_size = np.log(resolve_size_factors(adata, given.size_factors, matrix))
        log_size = log_size if some is None or len(log_size) == len(some.cells) else log_size[some.cells]
    if likelihood in CONTINUOUS:
        matrix = at_level(matrix, common_level(matrix), place_of(given.layer))
        if matrix.level:
            logger.info("values are fitted less their common level %.10g", matrix.level)
    counts, auto, at_least = likelihood not in CONTINUOUS, isinstance(given.n_factors, str), _stated(given.n_factors)
    asked = given.batch_size
    if asked is None and not counts and matrix.observed is not None:
        asked = adata.n_obs  # every step solves for all genes one by one, so that few large steps are quickest
    size = choose_batch_size(asked, adata.n_obs, at_least, counts=counts)
    shape = adata.n_obs, matrix.shape[1]
    n_factors = most_factors(*shape, size, counts=counts) if auto else at_least
    if matrix.observed is not None or levels is not None:
        when = "Where some entries are not data," if levels is None else "Under likelihood='ordinal'"
        check_cov_bytes(n_factors + matrix.n_covariates, max(shape), when)
    device = resolve_device(given.device)
    made = replace(
        given,
        n_factors=n_factors,
        likelihood=likelihood,
        prior_scales=scales,
        batch_size=size,
        max_epochs=choose_max_epochs(given.max_epochs, given.engine, -(-adata.n_obs // size)),
        device=str(device),
        progress=given.progress and settings.progress,
        guide=given.guide or given.family,
        learning_rate=given.learning_rate or LEARNING_RATE,
    )
    options = FitOptions(
        **made.named([each.name for each in fields(FitOptions)]) | {"device": device},
        dtype=torch.float32,
        seed=int(resolve_rng(given.rng).integers(2**31)),
        log_size=log_size,
        levels=levels,
        choose_rank=auto,
    )
    base = (math.e if normalised else log_base(adata.uns, kind)) if like_logs and looks is None else None
    return PreparedFit(matrix, made, options, fitted, kind, base, coding)


def _check_data(adata: AnnData, given: FitArguments, likelihood: str, matrix: CellMatrix, fitted: np.ndarray) -> None:
    """Raise unless the likelihood can be fitted to the values."""
    cells, genes = adata.obs_names, adata.var_names[fitted]
    stored_only = given.observed == "stored"
    if stored_only:
        check_stored_variation(matrix, given.layer)
    warn_about_observed(matrix, given.layer, cells, genes, likelihood=likelihood)
    if stored_only:
        return
    if likelihood in CONTINUOUS:
        check_values(matrix, given.layer)
        return
    check_variation(matrix, given.layer)
    warn_about_empty_genes(matrix, given.layer)


def _check_together(given: FitArguments) -> dict[str, object]:
    """Raise unless the arguments, each valid by itself, go together; the prior scales that are fixed."""
    check_normalize(given)
    check_engine_options(given)
    check_checkpoint(given.checkpoint)
    if given.n_factors == AUTO:
        check_auto(given.engine, given.prior_scales if isinstance(given.prior_scales, dict) else {})
    elif given.engine == "pyro":
        check_count("n_factors", given.n_factors)
    scales = check_prior_scales(given.prior_scales, _stated(given.n_factors))
    check_noise(given.noise, given.engine, scales)
    check_takes_covariates(given.covariates, given.engine, given.noise)
    return scales


def _stated(n_factors: int | str) -> int:
    """The number of factors asked for, 0 where it is to be chosen."""
    return 0 if isinstance(n_factors, str) else n_factors


def _genes_to_fit(adata: AnnData, given: FitArguments) -> np.ndarray:
    mask = given.mask_var
    fitted = np.ones(adata.n_vars, dtype=bool) if mask is None else resolve_mask("mask_var", mask, adata.var)
    check_shape(_stated(given.n_factors), adata.n_obs, int(fitted.sum()))
    return fitted
