"""The posterior from its stored fields: noise and covariances, which depend on the likelihood."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..._keys import CELL_BASIS, CELL_COV, CELL_EIG, DF, GENE_BASIS, GENE_EIG, HELD_OUT, LEVELS, SIGMA
from ...linalg.covariances import Common, Eigenbasis, OneBasis, Packed, PackedUnderNoise
from ...model.noise import CountNoise, NormalNoise
from ..posterior import CountPosterior, NormalPosterior
from ..recomputed import Recomputed
from .layout import packed_with_known
from .lookup import entry

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from .field_reader import FieldReader
    from .schema import FitKind


def read_normal(
    stored: FieldReader, kind: FitKind, params: Mapping[str, Any], common: dict[str, Any], *, cells: bool
) -> NormalPosterior:
    """The posterior under the Normal likelihood or the Student t, from what all likelihoods share."""
    sigma = stored.array("gene_sigma")
    if not ((sigma >= 0) & np.isfinite(sigma)).all():
        msg = (
            f"{stored.place('gene_sigma')} must not be negative, missing or infinite where genes were fitted: it was "
            "changed after the fit. Put it back, or run lfm.tl.fit(adata) again."
        )
        raise ValueError(msg)
    predictive = stored.on_device(sigma)
    shared = params["noise"] == "shared"
    fit_sigma = torch.full_like(predictive, stored.number(SIGMA)) if shared else predictive
    cell_cov: OneBasis | Packed
    gene_cov: Eigenbasis | PackedUnderNoise
    cell_sigma = None
    if kind.own_cov:
        packed = stored.tensor("gene_cov_packed")
        gene_cov = PackedUnderNoise(packed, predictive, common["gene_prior"].cov)
        cell_cov = Packed(stored.tensor("cell_cov_packed") if cells else packed[:0])
    else:
        gene_cov = Eigenbasis(stored.tensor(GENE_BASIS), stored.tensor(GENE_EIG), predictive)
        if kind.noise_by_cell:
            cell_sigma = stored.tensor("cell_sigma") if cells else predictive[:0]
            cell_cov = Eigenbasis(stored.tensor(CELL_BASIS), stored.tensor(CELL_EIG), cell_sigma)
        else:
            cell_cov = Common(stored.tensor(CELL_COV), len(common["cell_mean"]))
    noise = NormalNoise(fit_sigma, predictive, cell_sigma, stored.number(DF) if kind.student_t else None)
    return NormalPosterior(**common, cell_cov=cell_cov, gene_cov=gene_cov, noise=noise)


def read_counts(
    stored: FieldReader, kind: FitKind, params: Mapping[str, Any], common: dict[str, Any], *, cells: bool
) -> CountPosterior:
    """The posterior under a count likelihood, whose covariances differ by row, from what all likelihoods share."""
    adata, likelihood = stored.adata, str(params["likelihood"])
    gene_cov = Packed(stored.tensor("gene_cov_packed"))
    if kind.dispersion:
        theta = stored.array("gene_theta")
        _check_positive(theta > 0, theta, stored.place("gene_theta"), "gene", adata.var_names[stored.layout.fitted])
        dispersion = stored.on_device(1 / theta)
    else:
        dispersion = common["gene_mean"].new_zeros(len(common["gene_mean"]))
    log_size = dispersion.new_zeros(len(common["cell_mean"]))
    if cells and not kind.levels:
        size = stored.array("size_factor")
        _check_positive((size > 0) & np.isfinite(size), size, stored.place("size_factor"), "cell", adata.obs_names)
        log_size = stored.on_device(np.log(size))
    noise = CountNoise(likelihood, dispersion, log_size, stored.tensor(LEVELS) if kind.levels else None)
    if not cells:
        cell_cov: Packed | Recomputed = Packed(gene_cov.values[:0])
    elif stored.has("cell_cov_packed") or kind.levels or params.get("observed") == "stored" or HELD_OUT in params:
        cell_cov = Packed(packed_with_known(stored.tensor("cell_cov_packed"), common["n_known"]))
    else:  # computed anew, as if every entry were data
        cell_cov = Recomputed.of(
            common["mu"],
            common["cell_mean"],
            common["gene_mean"],
            gene_cov,
            noise,
            common["cell_prior"].given_known(common["n_known"]),
            str(entry(params, "family", stored.key)),
        )
    return CountPosterior(**common, cell_cov=cell_cov, gene_cov=gene_cov, noise=noise)


def _check_positive(positive: np.ndarray, values: np.ndarray, where: str, what: str, names: pd.Index) -> None:
    wrong = ~positive
    if wrong.any():
        msg = (
            f"{where} must be positive, found {values[wrong][0]:g} in {what} {names[wrong][0]!r}, first of "
            f"{wrong.sum()} {what}(s): it was changed after the fit. Put it back, or run lfm.tl.fit(adata) again."
        )
        raise ValueError(msg)
