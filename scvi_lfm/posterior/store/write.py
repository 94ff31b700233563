"""The only writer of a fit's fields: the schema says which, this table how each follows from the posterior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ... import _keys
from ..._memory import naming_memory
from ..._settings import settings
from .layout import Layout, packed_of_free, stored_bytes
from .schema import FIELDS, FitKind
from .transaction import all_or_nothing, remove

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from anndata import AnnData

    from ..posterior import CountPosterior, NormalPosterior


@dataclass(frozen=True)
class _Parts:
    """Parts of which fields are made."""

    q: Any  # a posterior; which attributes it has follows from the kind of the fit, which the schema knows
    cell_sd: Tensor  # (n, k)
    gene_sd: Tensor  # (m, k)
    first: int  # of the factors among the k coordinates
    level: float
    totals: np.ndarray | None


_VALUES: dict[str, Callable[[_Parts], Any]] = {
    "cell_factors": lambda it: it.q.cell_factors,
    "cell_factors_sd": lambda it: it.cell_sd[:, it.first :],
    "cell_activity": lambda it: it.q.cell_mean[:, 0],
    "cell_activity_sd": lambda it: it.cell_sd[:, 0],
    "size_factor": lambda it: it.q.noise.log_size.exp(),
    "cell_total": lambda it: it.totals,
    "cell_sigma": lambda it: it.q.noise.cell,
    "cell_cov_packed": lambda it: packed_of_free(it.q.cell_cov.values, it.q.n_known),
    "gene_factors": lambda it: it.q.gene_factors,
    "gene_factors_sd": lambda it: it.gene_sd[:, it.first :],
    "gene_beta": lambda it: it.q.gene_mean[:, 1 : it.first],
    "gene_beta_sd": lambda it: it.gene_sd[:, 1 : it.first],
    "gene_cov_packed": lambda it: it.q.gene_cov.values,
    "gene_abundance": lambda it: it.q.gene_mean[:, 0],
    "gene_abundance_sd": lambda it: it.gene_sd[:, 0],
    "gene_theta": lambda it: 1 / it.q.noise.dispersion,
    "gene_sigma": lambda it: it.q.noise.predictive,
    _keys.MU: lambda it: it.q.mu + it.level,
    _keys.PRIOR_CELL_MEAN: lambda it: it.q.cell_prior.mean,
    _keys.PRIOR_CELL_COV: lambda it: it.q.cell_prior.cov,
    _keys.PRIOR_GENE_MEAN: lambda it: it.q.gene_prior.mean,
    _keys.PRIOR_GENE_COV: lambda it: it.q.gene_prior.cov,
    _keys.SIGMA: lambda it: _root_mean_square(it.q.noise.sigma),
    _keys.DF: lambda it: it.q.noise.df,
    _keys.LEVELS: lambda it: it.q.noise.levels.cpu().numpy(),
    _keys.GENE_BASIS: lambda it: it.q.gene_cov.basis,
    _keys.GENE_EIG: lambda it: it.q.gene_cov.eig,
    _keys.BY_ROW: lambda it: True,
    _keys.CELL_BASIS: lambda it: it.q.cell_cov.basis,
    _keys.CELL_EIG: lambda it: it.q.cell_cov.eig,
    _keys.CELL_COV: lambda it: it.q.cell_cov.matrix,
}


@naming_memory("store the fit")
def write_fit(
    adata: AnnData,
    key: str,
    posterior: NormalPosterior | CountPosterior,
    *,
    n_factors: int,
    fitted: np.ndarray,
    record: Mapping[str, Any],
    totals: np.ndarray | None = None,
) -> None:
    """Write a fit under `key`, and remove what an earlier one left there that this one does not have.

    `record` is what the schema has in uns besides the posterior: `params`, and how the fit went. `totals` are those
    that values were normalised from, (n,).

    Raises
    ------
    ValueError
        The record holds what the schema does not have, or what follows from the posterior.
    """
    of_cells = posterior.cell_cov
    fits = stored_bytes(n_factors, adata.n_obs) <= settings.max_cov_bytes
    kept = of_cells.by_row and of_cells.is_held and fits
    fit = FitKind.of(record, own_cov=posterior.gene_cov.by_row, cell_cov_kept=kept)
    due = [field for field in FIELDS if field.due(fit)]
    unknown = set(record) - {field.name for field in FIELDS if field.name not in _VALUES}
    if unknown:
        msg = f"The schema of a stored fit has no entry {', '.join(map(repr, sorted(unknown)))} for its record."
        raise ValueError(msg)
    layout = Layout(adata.n_obs, fitted, np.arange(n_factors) < posterior.n_factors, posterior.n_known)
    parts = _Parts(
        q=posterior,
        cell_sd=posterior.cell_cov.diagonals().sqrt().expand(posterior.cell_mean.shape),
        gene_sd=posterior.gene_cov.diagonals().sqrt(),
        first=1 + posterior.n_known,
        level=float(record.get(_keys.LEVEL, 0.0)),
        totals=totals,
    )

    def stored(name: str, shape: tuple[str, ...], dtype: str | type) -> Any:
        value = _VALUES[name](parts)
        if isinstance(value, Tensor):
            return layout.spread(value.detach().cpu().numpy(), shape, str(dtype))
        return value

    values = {field: stored(field.name, field.shape, field.dtype) for field in due if field.name in _VALUES}
    with all_or_nothing(adata):
        for field in FIELDS:
            if field.frame == "uns":
                continue
            frame, name = getattr(adata, field.frame), field.key(key)
            if field in values:
                frame[name] = values[field]
            elif name in frame:
                remove(adata, field.frame, name)
        adata.uns[key] = dict(record) | {field.name: value for field, value in values.items() if field.frame == "uns"}


def _root_mean_square(sigma: Tensor) -> float:
    # equal values come back as they are, to the bit
    same = bool((sigma == sigma[0]).all())
    return float(sigma[0] if same else sigma.square().mean().sqrt())
