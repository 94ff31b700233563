"""Every key that the package writes into an AnnData, spelled once."""

from __future__ import annotations

from dataclasses import dataclass

# in uns of a fit: what is known of every number of factors; how held-out entries were predicted (in params: the mask);
# how covariates are coded; whether every row has a covariance of its own; what kind of values was read
RANK, HELD_OUT, COVARIATES, BY_ROW, VALUES = "rank", "held_out", "covariates", "by_row", "values"
# in uns of a fit: what was taken off all values before they were fitted; absent where nothing was
LEVEL = "level"
# in uns: which tool wrote which field
WRITTEN = "lfm_written"


@dataclass(frozen=True)
class FitKeys:
    """Where `tl.fit` and `tl.project` store their results."""

    uns: str
    cell_factors: str
    cell_factors_sd: str
    cell_activity: str
    cell_activity_sd: str
    cell_sigma: str
    gene_factors: str
    gene_factors_sd: str
    gene_abundance: str
    gene_abundance_sd: str
    gene_sigma: str
    gene_theta: str
    size_factor: str
    gene_beta: str
    gene_beta_sd: str
    cell_cov: str
    gene_cov: str

    @property
    def places(self) -> list[tuple[str, str]]:
        """Container and name of every field that a fit may have."""
        cells, genes = (self.cell_factors, self.cell_factors_sd, self.cell_cov), (self.gene_factors, self.gene_cov)
        names = {
            "uns": (self.uns,),
            "obsm": cells,
            "obs": (self.cell_activity, self.cell_activity_sd, self.cell_sigma, self.size_factor),
            "varm": (*genes, self.gene_factors_sd, self.gene_beta, self.gene_beta_sd),
            "var": (self.gene_abundance, self.gene_abundance_sd, self.gene_sigma, self.gene_theta),
        }
        return [(container, name) for container, fields in names.items() for name in fields]


def fit_keys(stem: str) -> FitKeys:
    """Keys of a fit stored under `stem`."""
    return FitKeys(
        uns=stem,
        cell_factors=f"X_{stem}",
        cell_factors_sd=f"X_{stem}_sd",
        cell_activity=f"{stem}_a",
        cell_activity_sd=f"{stem}_a_sd",
        cell_sigma=f"{stem}_sigma",
        gene_factors=stem,
        gene_factors_sd=f"{stem}_sd",
        gene_abundance=f"{stem}_b",
        gene_abundance_sd=f"{stem}_b_sd",
        gene_sigma=f"{stem}_sigma",
        gene_theta=f"{stem}_theta",
        size_factor=f"{stem}_size_factor",
        gene_beta=f"{stem}_beta",
        gene_beta_sd=f"{stem}_beta_sd",
        cell_cov=f"{stem}_cov",
        gene_cov=f"{stem}_cov",
    )


def train_layer(stem: str) -> str:
    """Layer of the counts that `tl.hold_out` leaves, where those held out are stored under `stem`."""
    return f"{stem}_train"
