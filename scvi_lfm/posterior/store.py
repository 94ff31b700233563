"""The only writer and reader of a fit's fields in an AnnData."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .._keys import FitKeys, fit_keys
from .._validate import check_key, near_matches
from ..model import Gaussian
from .posterior import Posterior, diagonal_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData
    from torch import Tensor


@dataclass(frozen=True)
class StoredFit:
    """What `tl.fit` stored, read back: the posterior over the factors that are on, and where it belongs."""

    posterior: Posterior
    active: np.ndarray  # (r,) bool: factors that are on
    fitted: np.ndarray  # (m,) bool: genes that were fitted
    params: Mapping[str, Any]
    keys: FitKeys


def write_cells(adata: AnnData, keys: FitKeys, cell_mean: Tensor, cell_cov: Tensor, active: np.ndarray) -> None:
    """Write (a, A) and their standard deviations into obs and obsm."""
    n_cells = adata.n_obs
    mean = _pad(_numpy(cell_mean[:, 1:]), active)
    sd = _pad(np.broadcast_to(_numpy(cell_cov.diagonal()[1:].sqrt()), (n_cells, int(active.sum()))), active)
    adata.obsm[keys.cell_factors] = mean.astype(np.float32)
    adata.obsm[keys.cell_factors_sd] = sd.astype(np.float32)
    adata.obs[keys.cell_activity] = _numpy(cell_mean[:, 0]).astype(np.float32)
    adata.obs[keys.cell_activity_sd] = np.full(n_cells, float(cell_cov[0, 0].sqrt()), dtype=np.float32)


def write_fit(
    adata: AnnData, key: str, posterior: Posterior, *, n_factors: int, fitted: np.ndarray, record: Mapping[str, Any]
) -> None:
    """Write a fit under `key`; `record` holds what else belongs into uns, `params` among it."""
    keys = fit_keys(key)
    active = np.arange(n_factors) < posterior.n_factors
    rows = np.concatenate([[True], active])

    def padded(matrix: Tensor) -> np.ndarray:
        full = np.zeros((n_factors + 1, n_factors + 1))
        full[np.ix_(rows, rows)] = _numpy(matrix)
        return full

    def padded_vector(vector: Tensor) -> np.ndarray:
        return _pad(_numpy(vector)[None], rows)[0]

    def per_gene(values: np.ndarray) -> np.ndarray:
        full = np.full((adata.n_vars, *values.shape[1:]), np.nan, dtype=np.float32)
        full[fitted] = values
        return full

    gene_sd = diagonal_of(posterior.gene_basis, posterior.gene_diagonal(posterior.predictive_sigma)).sqrt()
    uns = {
        **record,
        "mu": posterior.mu,
        "sigma": _root_mean_square(posterior.sigma),
        "prior_cell_mean": padded_vector(posterior.cell_prior.mean),
        "prior_cell_cov": padded(posterior.cell_prior.cov),
        "prior_gene_mean": padded_vector(posterior.gene_prior.mean),
        "prior_gene_cov": padded(posterior.gene_prior.cov),
        "cell_cov": padded(posterior.cell_cov),
        "gene_basis": padded(posterior.gene_basis),
        "gene_eig": padded_vector(posterior.gene_eig),
    }
    varm = per_gene(_pad(_numpy(posterior.gene_mean[:, 1:]), active))
    varm_sd = per_gene(_pad(_numpy(gene_sd[:, 1:]), active))
    var = {
        keys.gene_abundance: per_gene(_numpy(posterior.gene_mean[:, 0])),
        keys.gene_abundance_sd: per_gene(_numpy(gene_sd[:, 0])),
        keys.gene_sigma: per_gene(_numpy(posterior.predictive_sigma)),
    }
    write_cells(adata, keys, posterior.cell_mean, posterior.cell_cov, active)
    adata.varm[keys.gene_factors], adata.varm[keys.gene_factors_sd] = varm, varm_sd
    for name, values in var.items():
        adata.var[name] = values
    adata.uns[keys.uns] = uns


def read_fit(adata: AnnData, key: str, *, device: torch.device | None = None, cells: bool = True) -> StoredFit:
    """Read the fit stored under `key`; `cells=False` does without the embedding of the cells.

    Raises
    ------
    KeyError
        A field is missing.
    ValueError
        Fields do not belong together.
    """
    keys = fit_keys(check_key("key", key))
    uns = _find(adata, "uns", keys.uns)
    for name in ("params", "mu", "sigma", *_SMALL):
        if name not in uns:
            msg = f"uns[{key!r}] was not written by lfm.tl.fit: it has no {name!r}."
            raise KeyError(msg)
    small = {name: torch.as_tensor(np.asarray(uns[name], dtype=np.float64), device=device) for name in _SMALL}
    rows = torch.cat([torch.ones(1, dtype=torch.bool, device=device), (small["gene_basis"][1:] != 0).any(1)])
    active = rows[1:].cpu().numpy()
    gene_mean = _block(adata, "var", keys.gene_abundance, "varm", keys.gene_factors, active)
    fitted = np.isfinite(gene_mean[:, 0])
    sigma = np.asarray(_find(adata, "var", keys.gene_sigma), dtype=np.float64)[fitted]
    if cells:
        cell_mean = _block(adata, "obs", keys.cell_activity, "obsm", keys.cell_factors, active)
        _check_cells(adata, cell_mean, keys)
    else:
        cell_mean = np.empty((0, int(active.sum()) + 1))
    predictive = torch.as_tensor(sigma, device=device)
    params = uns["params"]
    shared = params["noise"] == "shared"
    posterior = Posterior(
        mu=float(uns["mu"]),
        cell_mean=torch.as_tensor(cell_mean, device=device),
        cell_cov=small["cell_cov"][rows][:, rows],
        gene_mean=torch.as_tensor(gene_mean[fitted], device=device),
        gene_basis=small["gene_basis"][rows][:, rows],
        gene_eig=small["gene_eig"][rows],
        sigma=torch.full_like(predictive, float(uns["sigma"])) if shared else predictive,
        predictive_sigma=predictive,
        cell_prior=Gaussian(small["prior_cell_mean"][rows], small["prior_cell_cov"][rows][:, rows]),
        gene_prior=Gaussian(small["prior_gene_mean"][rows], small["prior_gene_cov"][rows][:, rows]),
    )
    return StoredFit(posterior, active, fitted, params, keys)


_SMALL = (
    "prior_cell_mean",
    "prior_cell_cov",
    "prior_gene_mean",
    "prior_gene_cov",
    "cell_cov",
    "gene_basis",
    "gene_eig",
)


def _find(adata: AnnData, container: str, name: str) -> Any:
    fields = getattr(adata, container)
    if name not in fields:
        msg = f"{container} has no {name!r}. {near_matches(name, fields)} Run lfm.tl.fit(adata) first."
        raise KeyError(msg)
    return fields[name]


def _block(adata: AnnData, frame: str, scalar: str, matrices: str, vector: str, active: np.ndarray) -> np.ndarray:
    """(a, A) or (b, B) of the active factors, float64."""
    first = np.asarray(_find(adata, frame, scalar), dtype=np.float64)
    rest = np.asarray(_find(adata, matrices, vector), dtype=np.float64)
    if rest.ndim != 2 or rest.shape[1] != len(active):
        msg = (
            f"{matrices}[{vector!r}] has shape {rest.shape}, but the fit has {len(active)} factors. "
            "It was overwritten since; run lfm.tl.fit again."
        )
        raise ValueError(msg)
    return np.column_stack([first, rest[:, active]])


def _check_cells(adata: AnnData, cell_mean: np.ndarray, keys: FitKeys) -> None:
    missing = ~np.isfinite(cell_mean).all(axis=1)
    if missing.any():
        msg = (
            f"{int(missing.sum())} cell(s) have no values in obsm[{keys.cell_factors!r}] and "
            f"obs[{keys.cell_activity!r}], first {adata.obs_names[missing][0]!r}. Were they joined to the fitted ones? "
            "Place them with lfm.tl.project, or leave them out."
        )
        raise ValueError(msg)


def _pad(values: np.ndarray, active: np.ndarray) -> np.ndarray:
    full = np.zeros((len(values), len(active)))
    full[:, active] = values
    return full


def _root_mean_square(sigma: Tensor) -> float:
    # equal values come back as they are, to the bit
    same = bool((sigma == sigma[0]).all())
    return float(sigma[0] if same else sigma.square().mean().sqrt())


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()
