"""Results as tidy tables, read from what the tools stored in an AnnData."""

from ._elbo import elbo_df
from ._fits import factors_df, rank_df, uncertainty_df, variance_df
from ._results import anomalies_df, rank_genes_df

__all__ = ["anomalies_df", "elbo_df", "factors_df", "rank_df", "rank_genes_df", "uncertainty_df", "variance_df"]


def __dir__() -> list[str]:
    return sorted(__all__)
