"""The only reader of a fit's fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..._context import prepare_threads
from ..._keys import (
    BY_ROW,
    LEVEL,
    MU,
    PRIOR_CELL_COV,
    PRIOR_CELL_MEAN,
    PRIOR_GENE_COV,
    PRIOR_GENE_MEAN,
    VALUES,
    FitKeys,
    fit_keys,
)
from ..._memory import naming_memory
from ..._validate import check_key
from ...model import Gaussian
from .check_record import check_record
from .check_rows import check_cells_fit_record, check_genes_fit_record, check_present
from .covariates import known_of_cells, n_known
from .field_reader import FieldReader
from .layout import Layout
from .lookup import entry, find, numbers
from .params import arguments_of
from .read_likelihood import read_counts, read_normal
from .schema import FitKind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from anndata import AnnData

    from ..._fit_arguments import FitArguments
    from ..posterior import CountPosterior, NormalPosterior


@dataclass(frozen=True)
class StoredFit:
    """Fit as `tl.fit` stored it, read back: the posterior over the factors that are on, and where it belongs."""

    posterior: NormalPosterior | CountPosterior
    active: np.ndarray  # (r,) bool: factors that are on
    fitted: np.ndarray  # (m,) bool: genes that were fitted
    params: Mapping[str, Any]
    keys: FitKeys
    values: Mapping[str, Any]  # their kind; empty in fits stored before it was
    totals: np.ndarray | None = None  # (n,) float32: that the fitted cells were normalised from
    level: float = 0.0  # of the values as they were read: the posterior, mu too, is that of values less this

    @property
    def arguments(self) -> FitArguments:
        """The arguments of the fit, as far as `params` tell."""
        return arguments_of(self.params, self.keys.uns)

    @property
    def device(self) -> torch.device:
        """Device of the posterior."""
        return self.posterior.gene_mean.device


@naming_memory("read the stored fit")
def read_fit(adata: AnnData, key: str, *, device: torch.device | None = None, cells: bool = True) -> StoredFit:
    """Read the fit stored under `key`; `cells=False` does without the embedding of the cells.

    Raises
    ------
    KeyError
        A field is missing.
    ValueError
        Fields do not belong together, as where AnnData with different fits were joined.
    """
    prepare_threads()
    keys = fit_keys(check_key("key", key))
    uns = find(adata, "uns", keys.uns)
    params = check_record(uns, key)
    kind = FitKind.of(uns, own_cov=bool(uns.get(BY_ROW, False)))
    p, level = n_known(uns), float(uns.get(LEVEL, 0.0))
    active = np.asarray(entry(uns, PRIOR_CELL_COV, key)).diagonal()[1 + p :] > 0
    fitted = np.isfinite(numbers(adata, "var", keys.gene_abundance))
    stored = FieldReader(
        adata, key, Layout(adata.n_obs, fitted, active, p), torch.device("cpu") if device is None else device
    )
    gene_mean = stored.columns("gene_abundance", *(["gene_beta"] if p else []), "gene_factors")
    if not fitted.any():
        msg = f"None of the {adata.n_vars} gene(s) of `adata` was fitted (uns[{keys.uns!r}])."
        raise ValueError(msg)
    cell_mean = np.empty((0, gene_mean.shape[1]))
    if cells:
        free = stored.columns("cell_activity", "cell_factors")
        check_present(stored, free)
        cell_mean = np.column_stack([free[:, :1], known_of_cells(adata, uns), free[:, 1:]])
    common: dict[str, Any] = {
        "mu": stored.number(MU) - level,
        "cell_mean": stored.on_device(cell_mean),
        "gene_mean": stored.on_device(gene_mean),
        "cell_prior": Gaussian(stored.tensor(PRIOR_CELL_MEAN), stored.tensor(PRIOR_CELL_COV)),
        "gene_prior": Gaussian(stored.tensor(PRIOR_GENE_MEAN), stored.tensor(PRIOR_GENE_COV)),
        "n_known": p,
    }
    read: Callable[..., NormalPosterior | CountPosterior] = read_normal if kind.continuous else read_counts
    posterior = read(stored, kind, params, common, cells=cells)
    check_genes_fit_record(stored, posterior.gene_cov, gene_mean)
    if cells:
        check_cells_fit_record(stored, posterior.cell_cov)
    totals = stored.array("cell_total").astype(np.float32) if cells and kind.normalised else None
    return StoredFit(posterior, active, fitted, params, keys, uns.get(VALUES, {}), totals, level)
