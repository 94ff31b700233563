"""What `tl.fit` was asked for and all that follows from it: every argument checked before any work is done."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from .._context import prepare_threads, resolve_device
from .._fit_arguments import AUTO, FitArguments
from .._settings import logger, settings
from .._validate import check_count, in_memory, memory_first, place_of, resolve_mask, resolve_rng
from ..data import at_level, code, common_level, judged, learn_coding, read_matrix
from ..data.kind import ValueKind, log_base
from ..inference import FitOptions
from ..model.likelihoods import CONTINUOUS, COUNTS, LIKELIHOODS
from ..model.priors import check_prior_scales
from ._fit_checkpoint import check_checkpoint
from ._fit_checks import (
    LEARNING_RATE,
    check_auto,
    check_engine_options,
    check_guide_of_normal,
    check_levels,
    check_noise,
    check_options_of_likelihood,
    check_shape,
    check_takes_covariates,
    check_variation,
    checked,
    choose_batch_size,
    choose_likelihood,
    choose_max_epochs,
    most_factors,
    warn_about_codes,
    warn_about_empty,
)
from ._fit_observed import check_cov_bytes, observed_part, warn_about_observed
from ._fit_request import FitRequest
from ._fit_values import check_normalize, looks_of, warn_about_kind
from ._size_factors import resolve_size_factors
from ._values import check_counts_of

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from ..data import CellMatrix
    from ..data.counted import CellSample


@dataclass(frozen=True)
class PreparedFit:
    """Checked values, and every choice made; or values that are to be checked when the fit has read them."""

    matrix: CellMatrix
    arguments: FitArguments  # with every choice made
    options: FitOptions
    fitted: np.ndarray  # (m,) bool: genes to fit
    log_base: float | None  # None where they are no logs
    coding: pd.DataFrame | None = None  # of the covariates

    @property
    def kind(self) -> ValueKind:
        """Kind of all values that were read; known once they are checked."""
        return cast("ValueKind", self.matrix.kind)

    @property
    def totals(self) -> np.ndarray | None:
        """Totals that the cells were normalised from, (n,)."""
        return None if self.matrix.normalised is None else self.matrix.normalised.totals


def prepare_fit(adata: AnnData, given: FitArguments, some: CellSample | None = None) -> PreparedFit:
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
    asked = FitRequest(adata, given, _genes_to_fit(adata, given), some)
    read, coding = _read(asked)
    never_counts = given.observed == "stored" or given.normalize is not None
    kind = cast("ValueKind", read.kind)
    given = replace(given, likelihood=choose_likelihood(given.likelihood, kind, never_counts=never_counts))
    asked = replace(asked, arguments=given)
    levels, matrix = _values_to_fit(asked, scales, read)
    base = None if read.kind is None else _judge(asked, read, matrix)
    log_size = _log_size(asked, matrix)
    if given.likelihood in CONTINUOUS and read.kind is not None:  # what is judged later shares no level
        matrix = _less_level(matrix, given)
    size, n_factors = _sizes(given, matrix, adata.n_obs, has_levels=levels is not None)
    device = resolve_device(given.device)
    made = replace(
        given,
        n_factors=n_factors,
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
        choose_rank=given.n_factors == AUTO,
    )
    return PreparedFit(matrix, made, options, asked.fitted, base, coding)


def check_what_was_read(adata: AnnData, prepared: PreparedFit) -> PreparedFit:
    """Check values that a fit has read, where they were not before.

    Raises
    ------
    ValueError
        The data cannot be used.
    """
    given, matrix = prepared.arguments, prepared.matrix
    if matrix.kind is not None:
        return prepared
    matrix = judged(matrix, adata, given.layer)
    base = _judge(FitRequest(adata, given, prepared.fitted), matrix, matrix)
    return replace(prepared, matrix=matrix, log_base=base)


def _judge(asked: FitRequest, read: CellMatrix, matrix: CellMatrix) -> float | None:
    """Check values that were read, and those of them that are data; the base of their logarithms, if they are any."""
    adata, given = asked.adata, asked.arguments
    kind, normalised = cast("ValueKind", read.kind), read.normalised
    like_logs = given.likelihood in CONTINUOUS and given.observed != "stored"
    looks = looks_of(read, kind) if like_logs else None
    if asked.some is None:
        _check_data(asked, matrix)
        warn_about_kind(
            looks, normalised.kind if normalised else kind, given.layer, given.likelihood, memory_first(adata)
        )
    if not like_logs or looks is not None:
        return None
    return math.e if normalised else log_base(adata.uns, kind)


def _read(asked: FitRequest) -> tuple[CellMatrix, pd.DataFrame | None]:
    """The values of the genes to fit, with the covariates of the cells, and the coding of these."""
    adata, given, some = asked.adata, asked.arguments, asked.some
    obs = None if given.covariates is None else in_memory(adata.obs)
    coding = None if obs is None else learn_coding(obs, given.covariates)
    matrix = read_matrix(
        adata,
        given.layer,
        genes=asked.fitted,
        normalize=given.normalize,
        stored_only=given.observed == "stored",
        some=some,
        later=some is None and can_be_checked_later(given),
    )
    if obs is None or coding is None:
        return matrix, None
    known = code(obs, coding)
    if some is None:
        warn_about_codes(obs, coding)
    return replace(matrix, covariates=known if some is None else known[some.cells]), coding


def _values_to_fit(
    asked: FitRequest, scales: dict[str, object], read: CellMatrix
) -> tuple[tuple[float, float] | None, CellMatrix]:
    """The extreme levels, if the likelihood has any, and the values that are data; all are such as it takes."""
    given, likelihood, kind = asked.arguments, asked.arguments.likelihood, cast("ValueKind", read.kind)
    check_options_of_likelihood(likelihood, given.engine, given.noise, scales, given.size_factors)
    if likelihood not in CONTINUOUS:  # held-out values too: they are to be predicted
        words = {"asked": f"{likelihood=}", "otherwise": "likelihood='normal'"}
        check_counts_of(asked.adata, given.layer, asked.fitted, read, LIKELIHOODS[likelihood], **words)
    levels = check_levels(kind, given.layer) if LIKELIHOODS[likelihood].has_levels else None
    matrix = observed_part(asked, read)
    if likelihood in CONTINUOUS:
        check_guide_of_normal(given.guide, likelihood)
    return levels, matrix


def _log_size(asked: FitRequest, matrix: CellMatrix) -> np.ndarray | None:
    """Logs of the size factors, (n,); None where the likelihood takes none."""
    given, some = asked.arguments, asked.some
    if given.likelihood not in COUNTS:
        return None
    log_size = np.log(resolve_size_factors(asked.adata, given.size_factors, matrix))
    return log_size if some is None or len(log_size) == len(some.cells) else log_size[some.cells]


def _less_level(matrix: CellMatrix, given: FitArguments) -> CellMatrix:
    """The values less their common level."""
    matrix = at_level(matrix, common_level(matrix), place_of(given.layer))
    if matrix.level:
        logger.info("values are fitted less their common level %.10g", matrix.level)
    return matrix


def _sizes(given: FitArguments, matrix: CellMatrix, n_cells: int, *, has_levels: bool) -> tuple[int, int]:
    """Cells in a minibatch, and the number of factors, or the most of them where it is to be chosen."""
    counts, asked, at_least = given.likelihood not in CONTINUOUS, given.batch_size, _stated(given.n_factors)
    if asked is None and not counts and matrix.observed is not None:
        asked = n_cells  # every step solves for all genes one by one, so that few large steps are quickest
    size = choose_batch_size(asked, n_cells, at_least, counts=counts)
    shape = n_cells, matrix.shape[1]
    n_factors = most_factors(*shape, size, counts=counts) if given.n_factors == AUTO else at_least
    if matrix.observed is not None or has_levels:
        when = "Under likelihood='ordinal'" if has_levels else "Where some entries are not data,"
        check_cov_bytes(n_factors + matrix.n_covariates, max(shape), when)
    return size, n_factors


def _check_data(asked: FitRequest, matrix: CellMatrix) -> None:
    """Raise if there is nothing to fit; warn about cells and genes without a value."""
    given, stored_only = asked.arguments, asked.arguments.observed == "stored"
    cells, genes = asked.adata.obs_names, asked.adata.var_names[asked.fitted]
    check_variation(matrix, given.layer, stored_only=stored_only)
    warn_about_observed(matrix, given.layer, cells, genes, likelihood=given.likelihood)
    if not stored_only:
        warn_about_empty(matrix, given.layer, continuous=given.likelihood in CONTINUOUS)


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


def can_be_checked_later(given: FitArguments) -> bool:
    """Whether a fit is one that reads every cell among its neighbours and asks for nothing of all of them before."""
    wants_none = given.held_out is None and given.checkpoint is None
    return given.normalize is not None and given.engine == "natural_gradient" and wants_none


def _genes_to_fit(adata: AnnData, given: FitArguments) -> np.ndarray:
    mask = given.mask_var
    fitted = np.ones(adata.n_vars, dtype=bool) if mask is None else resolve_mask("mask_var", mask, adata.var)
    check_shape(_stated(given.n_factors), adata.n_obs, int(fitted.sum()))
    return fitted
