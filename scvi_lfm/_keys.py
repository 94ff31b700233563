"""Every key that the package writes into an AnnData, spelled once."""

from __future__ import annotations

from dataclasses import dataclass, fields

# in uns of a fit, from its posterior: posterior/store/schema.py says what each holds
MU, SIGMA, DF, BY_ROW, LEVELS = "mu", "sigma", "df", "by_row", "levels"
PRIOR_CELL_MEAN, PRIOR_CELL_COV = "prior_cell_mean", "prior_cell_cov"
PRIOR_GENE_MEAN, PRIOR_GENE_COV = "prior_gene_mean", "prior_gene_cov"
CELL_COV, CELL_BASIS, CELL_EIG = "cell_cov", "cell_basis", "cell_eig"
GENE_BASIS, GENE_EIG = "gene_basis", "gene_eig"
# in uns of a fit, of how it was asked for and went; in params, HELD_OUT names a mask and COVARIATES columns
PARAMS, VERSION, SECONDS, CONVERGED, ELBO = "params", "version", "seconds", "converged", "elbo"
VARIANCE_RATIO, RANK, HELD_OUT, COVARIATES = "variance_ratio", "rank", "held_out", "covariates"
VALUES, LEVEL, TOTAL_COUNTS, EXPECTED_COUNTS = "values", "level", "total_counts", "expected_counts"
# in uns: which tool wrote which field
WRITTEN = "lfm_written"
# under which tools store their results unless they are told otherwise
DEFAULT_KEYS = {
    "fit": "lfm",
    "project": "lfm",
    "rank_genes": "rank_genes_lfm",
    "rank_cells": "rank_cells_lfm",
    "anomalies": "lfm_anomaly",
    "hold_out": "held_out",
    "predict": "lfm_expected",
}


@dataclass(frozen=True)
class FitKeys:
    """Names under which `tl.fit` and `tl.project` store their results; defaults are patterns of the stem."""

    uns: str = "{}"
    cell_factors: str = "X_{}"
    cell_factors_sd: str = "X_{}_sd"
    cell_activity: str = "{}_a"
    cell_activity_sd: str = "{}_a_sd"
    cell_sigma: str = "{}_sigma"
    size_factor: str = "{}_size_factor"
    cell_total: str = "{}_total"
    cell_cov_packed: str = "{}_cov"
    gene_factors: str = "{}"
    gene_factors_sd: str = "{}_sd"
    gene_abundance: str = "{}_b"
    gene_abundance_sd: str = "{}_b_sd"
    gene_sigma: str = "{}_sigma"
    gene_theta: str = "{}_theta"
    gene_beta: str = "{}_beta"
    gene_beta_sd: str = "{}_beta_sd"
    gene_cov_packed: str = "{}_cov"


def fit_keys(stem: str) -> FitKeys:
    """Keys of a fit stored under `stem`."""
    return FitKeys(**{field.name: str(field.default).format(stem) for field in fields(FitKeys)})


def train_layer(stem: str) -> str:
    """Layer of the counts that `tl.hold_out` leaves, where those held out are stored under `stem`."""
    return f"{stem}_train"
