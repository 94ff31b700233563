"""Every field of a stored fit: what is written, read, removed and taken along follows from this table.

Axes are n cells, m genes, r factors, p covariates, the k = 1 + p + r coordinates of (a, zeta, A) and (b, beta, B), and
packed lower triangles: `cell_packed` of (a, A), `gene_packed` of (b, beta, B). See `layout.py`.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ... import _keys
from ..._keys import fit_keys
from ...model.likelihoods import LIKELIHOODS

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class FitKind:
    """Kind of a fit, which decides the fields that it has: each part is the `when` of some."""

    counts: bool  # eta is the log of a rate
    continuous: bool  # it is the mean of values
    dispersion: bool  # of every gene
    student_t: bool
    levels: bool  # values are levels with thresholds between them
    own_cov: bool  # every cell and gene has a covariance of its own
    own_cell_cov: bool  # and those of cells are not too many to be stored
    by_row: bool  # they do not follow from the likelihood
    one_gene_basis: bool  # in which the covariances of all genes are diagonal
    one_cell_basis: bool
    one_cell_cov: bool  # is that of all cells
    noise_by_cell: bool
    covariates: bool
    held_out: bool
    ranks: bool  # every number of factors was tried
    level: bool  # something was taken off all values
    normalised: bool  # counts were, as they were read
    sizes_from_totals: bool  # size factors are total counts over their mean
    always: bool = True

    @classmethod
    def of(cls, record: Mapping[str, Any], *, own_cov: bool, cell_cov_kept: bool = False) -> FitKind:
        """Kind from what uns holds, and whether covariances differ by row; those of counts always do."""
        params = record[_keys.PARAMS]
        likelihood = str(params.get("likelihood", "normal"))
        known = LIKELIHOODS[likelihood]
        counts, linear = known.has_rate, known.linear
        noise_by_cell, own_cov = linear and params.get("noise") == "cell_gene", own_cov or not linear
        return cls(
            counts=counts,
            continuous=linear,
            dispersion=known.learns_dispersion,
            student_t=likelihood == "student_t",
            levels=known.has_levels,
            own_cov=own_cov,
            own_cell_cov=own_cov and cell_cov_kept,
            by_row=own_cov and linear,
            one_gene_basis=not own_cov,
            one_cell_basis=not own_cov and noise_by_cell,
            one_cell_cov=not own_cov and not noise_by_cell,
            noise_by_cell=noise_by_cell,
            covariates=_keys.COVARIATES in params,
            held_out=_keys.HELD_OUT in params,
            ranks="max_factors" in params,
            level=bool(record.get(_keys.LEVEL, 0.0)),
            normalised="normalize" in params,
            sizes_from_totals=counts and "size_factors" not in params,
        )


@dataclass(frozen=True)
class Field:
    """One field of a stored fit."""

    frame: str  # obs, var, obsm, varm or uns
    name: str  # in uns: that of an entry of uns[key]; else of `FitKeys`, which makes it of the fit's key
    shape: tuple[str, ...]  # axes; () for what is no array
    dtype: str | type  # of NumPy; the class of what is no array
    of: str  # what it belongs to: cells, genes, model (both) or record (how the fit was asked for, and how it went)
    says: str
    when: str = "always"  # of `FitKind`

    def key(self, stem: str) -> str:
        """Name in the frame, of a fit under the key `stem`."""
        return stem if self.frame == "uns" else str(getattr(fit_keys(stem), self.name))

    def due(self, fit: FitKind) -> bool:
        """Whether a fit of this kind has it."""
        return bool(getattr(fit, self.when))


F32, F64 = "float32", "float64"
FIELDS = (
    Field("obsm", "cell_factors", ("n", "r"), F32, "cells", "mean of A"),
    Field("obsm", "cell_factors_sd", ("n", "r"), F32, "cells", "standard deviation of A"),
    Field("obs", "cell_activity", ("n",), F32, "cells", "mean of the activity a"),
    Field("obs", "cell_activity_sd", ("n",), F32, "cells", "standard deviation of a"),
    Field("obs", "size_factor", ("n",), F32, "cells", "size factor", "counts"),
    Field("obs", "cell_total", ("n",), F32, "cells", "total that values were normalised from", "normalised"),
    Field("obs", "cell_sigma", ("n",), F32, "cells", "noise, by which that of genes is multiplied", "noise_by_cell"),
    Field("obsm", "cell_cov_packed", ("n", "cell_packed"), F32, "cells", "covariance of (a, A)", "own_cell_cov"),
    Field("varm", "gene_factors", ("m", "r"), F32, "genes", "mean of B"),
    Field("varm", "gene_factors_sd", ("m", "r"), F32, "genes", "standard deviation of B"),
    Field("varm", "gene_beta", ("m", "p"), F32, "genes", "mean of beta", "covariates"),
    Field("varm", "gene_beta_sd", ("m", "p"), F32, "genes", "standard deviation of beta", "covariates"),
    Field("varm", "gene_cov_packed", ("m", "gene_packed"), F32, "genes", "covariance of (b, beta, B)", "own_cov"),
    Field("var", "gene_abundance", ("m",), F32, "genes", "mean of the abundance b"),
    Field("var", "gene_abundance_sd", ("m",), F32, "genes", "standard deviation of b"),
    Field("var", "gene_theta", ("m",), F32, "genes", "dispersion", "dispersion"),
    Field("var", "gene_sigma", ("m",), F32, "genes", "noise for predicting and scoring", "continuous"),
    Field("uns", _keys.PARAMS, (), dict, "record", "arguments that repeat the fit"),
    Field("uns", _keys.VARIANCE_RATIO, ("r",), F32, "record", "share of variance of each factor"),
    Field("uns", _keys.ELBO, (), dict, "record", "bound per entry after each epoch"),
    Field("uns", _keys.HELD_OUT, (), dict, "cells", "how well held-out entries were predicted", "held_out"),
    Field("uns", _keys.RANK, (), dict, "record", "bound at each number of factors", "ranks"),
    Field("uns", _keys.LEVEL, (), float, "record", "what was taken off all values before they were fitted", "level"),
    Field("uns", _keys.CONVERGED, (), bool, "record", "whether the fit reached its tolerance"),
    Field("uns", _keys.SECONDS, (), float, "record", "time that the fit took"),
    Field("uns", _keys.VERSION, (), str, "record", "version of the package"),
    Field("uns", _keys.TOTAL_COUNTS, (), float, "record", "total of a cell with size factor one", "sizes_from_totals"),
    # from all genes of the fit: an AnnData may lose some later
    Field("uns", _keys.EXPECTED_COUNTS, (), float, "record", "what the prior expects of it", "sizes_from_totals"),
    Field("uns", _keys.VALUES, (), dict, "record", "what kind of values was read"),
    Field("uns", _keys.COVARIATES, (), pd.DataFrame, "record", "how each covariate is coded", "covariates"),
    Field("uns", _keys.MU, (), float, "model", "grand mean, on the scale of the values"),
    Field("uns", _keys.PRIOR_CELL_MEAN, ("k",), F64, "model", "prior mean of (a, zeta, A)"),
    Field("uns", _keys.PRIOR_CELL_COV, ("k", "k"), F64, "model", "prior covariance of (a, zeta, A)"),
    Field("uns", _keys.PRIOR_GENE_MEAN, ("k",), F64, "model", "prior mean of (b, beta, B)"),
    Field("uns", _keys.PRIOR_GENE_COV, ("k", "k"), F64, "model", "prior covariance of (b, beta, B)"),
    Field("uns", _keys.SIGMA, (), float, "model", "noise of the fit, over genes", "continuous"),
    Field("uns", _keys.LEVELS, (), np.ndarray, "model", "the lowest level, then thresholds between levels", "levels"),
    Field("uns", _keys.DF, (), float, "model", "degrees of freedom", "student_t"),
    Field("uns", _keys.GENE_BASIS, ("k", "k"), F64, "genes", "basis of all covariances", "one_gene_basis"),
    Field("uns", _keys.GENE_EIG, ("k",), F64, "genes", "their inverse in it, less one, at noise one", "one_gene_basis"),
    Field("uns", _keys.BY_ROW, (), bool, "model", "that every row has a covariance of its own", "by_row"),
    Field("uns", _keys.CELL_BASIS, ("k", "k"), F64, "cells", "basis of all covariances", "one_cell_basis"),
    Field("uns", _keys.CELL_EIG, ("k",), F64, "cells", "their inverse in it, less one, at noise one", "one_cell_basis"),
    Field("uns", _keys.CELL_COV, ("k", "k"), F64, "cells", "covariance of every (a, zeta, A)", "one_cell_cov"),
)
FIELD = {field.name: field for field in FIELDS}
# cells keep them where what is in uns, var and varm is lost, as on joining
ALONG_CELLS = [field for field in FIELDS if field.frame in {"obs", "obsm"} and field.when == "always"]


def fit_places(key: str) -> list[tuple[str, str]]:
    """Frame and name of every field that a fit under `key` may have."""
    return list(dict.fromkeys([("uns", key), *((field.frame, field.key(key)) for field in FIELDS)]))


def record_for_new_cells(uns: Mapping[str, Any]) -> dict[str, Any]:
    """Part of the record of a fit that holds for cells placed by it as well."""
    kept = [field.name for field in FIELDS if field.of == "record" and field.name in uns]
    return {name: deepcopy(uns[name]) for name in kept}
