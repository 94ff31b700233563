"""The only writer and reader of a fit's fields in an AnnData."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .._keys import FitKeys, fit_keys
from .._settings import settings
from .._validate import check_key, near_matches
from ..model import Gaussian
from ..model.likelihoods import COUNTS
from .covariances import Common, Eigenbasis, Packed
from .posterior import CountNoise, CountPosterior, NormalNoise, NormalPosterior
from .recomputed import Recomputed
from .stored_covariances import padded_packed, read_packed, stored_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData
    from torch import Tensor

    AnyPosterior = NormalPosterior | CountPosterior


@dataclass(frozen=True)
class StoredFit:
    """What `tl.fit` stored, read back: the posterior over the factors that are on, and where it belongs."""

    posterior: AnyPosterior
    active: np.ndarray  # (r,) bool: factors that are on
    fitted: np.ndarray  # (m,) bool: genes that were fitted
    params: Mapping[str, Any]
    keys: FitKeys


def write_cells(adata: AnnData, keys: FitKeys, q: AnyPosterior, active: np.ndarray) -> None:
    """Write (a, A) with their standard deviations, and what else belongs to cells, into obs and obsm."""
    sd = np.broadcast_to(_numpy(q.cell_cov.diagonals().sqrt()), q.cell_mean.shape)
    adata.obsm[keys.cell_factors] = _pad(_numpy(q.cell_mean[:, 1:]), active).astype(np.float32)
    adata.obsm[keys.cell_factors_sd] = _pad(sd[:, 1:], active).astype(np.float32)
    adata.obs[keys.cell_activity] = _numpy(q.cell_mean[:, 0]).astype(np.float32)
    adata.obs[keys.cell_activity_sd] = sd[:, 0].astype(np.float32)
    if isinstance(q, CountPosterior):
        adata.obs[keys.size_factor] = _numpy(q.noise.log_size.exp()).astype(np.float32)
    elif q.noise.cell is not None:
        adata.obs[keys.cell_sigma] = _numpy(q.noise.cell).astype(np.float32)
    adata.obsm.pop(keys.cell_cov, None)
    if isinstance(q.cell_cov, Packed) and stored_bytes(len(active), adata.n_obs) <= settings.max_cov_bytes:
        adata.obsm[keys.cell_cov] = padded_packed(q.cell_cov, active)


def write_fit(
    adata: AnnData,
    key: str,
    posterior: AnyPosterior,
    *,
    n_factors: int,
    fitted: np.ndarray,
    record: Mapping[str, Any],
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

    gene_sd = posterior.gene_cov.diagonals().sqrt()
    uns = {
        **record,
        "mu": posterior.mu,
        "prior_cell_mean": padded_vector(posterior.cell_prior.mean),
        "prior_cell_cov": padded(posterior.cell_prior.cov),
        "prior_gene_mean": padded_vector(posterior.gene_prior.mean),
        "prior_gene_cov": padded(posterior.gene_prior.cov),
    }
    varm = {
        keys.gene_factors: per_gene(_pad(_numpy(posterior.gene_mean[:, 1:]), active)),
        keys.gene_factors_sd: per_gene(_pad(_numpy(gene_sd[:, 1:]), active)),
    }
    var = {
        keys.gene_abundance: per_gene(_numpy(posterior.gene_mean[:, 0])),
        keys.gene_abundance_sd: per_gene(_numpy(gene_sd[:, 0])),
    }
    if isinstance(posterior, CountPosterior):
        varm[keys.gene_cov] = per_gene(padded_packed(posterior.gene_cov, active))
        if COUNTS[posterior.noise.likelihood].LEARNS_DISPERSION:
            var[keys.gene_theta] = per_gene(_numpy(1 / posterior.noise.dispersion))
    else:
        var[keys.gene_sigma] = per_gene(_numpy(posterior.noise.predictive))
        uns |= {
            "sigma": _root_mean_square(posterior.noise.sigma),
            "gene_basis": padded(posterior.gene_cov.basis),
            "gene_eig": padded_vector(posterior.gene_cov.eig),
        }
        of_cells = posterior.cell_cov
        if isinstance(of_cells, Eigenbasis):
            uns |= {"cell_basis": padded(of_cells.basis), "cell_eig": padded_vector(of_cells.eig)}
        else:
            uns["cell_cov"] = padded(of_cells.matrix)
    _remove_stale(adata, keys, [*varm, *var])
    if keys.cell_sigma in adata.obs:
        del adata.obs[keys.cell_sigma]
    write_cells(adata, keys, posterior, active)
    for name, values in varm.items():
        adata.varm[name] = values
    for name, values in var.items():
        adata.var[name] = values
    adata.uns[keys.uns] = uns


def _remove_stale(adata: AnnData, keys: FitKeys, written: list[str]) -> None:
    """Remove what a fit with another likelihood left under the same key, and this one does not write."""
    if keys.gene_cov not in written:
        adata.varm.pop(keys.gene_cov, None)
        if keys.size_factor in adata.obs:
            del adata.obs[keys.size_factor]
    for name in (keys.gene_sigma, keys.gene_theta):
        if name in adata.var and name not in written:
            del adata.var[name]


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
    params = _entry(uns, "params", key)
    counts = params.get("likelihood") in COUNTS
    differs = params.get("noise") == "cell_gene"
    names = _PRIOR if counts else (*_PRIOR, *_OF_GENES, *(_BY_CELL if differs else _OF_CELLS))
    small = {
        name: torch.as_tensor(np.asarray(_entry(uns, name, key), dtype=np.float64), device=device) for name in names
    }
    rows = torch.cat([torch.ones(1, dtype=torch.bool, device=device), small["prior_cell_cov"].diagonal()[1:] > 0])
    active = rows[1:].cpu().numpy()
    gene_mean = _block(adata, "var", keys.gene_abundance, "varm", keys.gene_factors, active)
    fitted = np.isfinite(gene_mean[:, 0])
    if cells:
        cell_mean = _block(adata, "obs", keys.cell_activity, "obsm", keys.cell_factors, active)
        _check_cells(adata, cell_mean, keys)
    else:
        cell_mean = np.empty((0, int(active.sum()) + 1))
    common: dict[str, Any] = {
        "mu": float(_entry(uns, "mu", key)),
        "cell_mean": torch.as_tensor(cell_mean, device=device),
        "gene_mean": torch.as_tensor(gene_mean[fitted], device=device),
        "cell_prior": Gaussian(small["prior_cell_mean"][rows], small["prior_cell_cov"][rows][:, rows]),
        "gene_prior": Gaussian(small["prior_gene_mean"][rows], small["prior_gene_cov"][rows][:, rows]),
    }
    posterior: AnyPosterior
    if counts:
        posterior = _count_posterior(adata, keys, params, common, fitted, rows, cells=cells)
    else:
        sigma = np.asarray(_find(adata, "var", keys.gene_sigma), dtype=np.float64)[fitted]
        predictive = torch.as_tensor(sigma, device=device)
        shared = params["noise"] == "shared"
        fit_sigma = torch.full_like(predictive, float(_entry(uns, "sigma", key))) if shared else predictive
        basis, eig = small["gene_basis"][rows][:, rows], small["gene_eig"][rows]
        cell_cov: Common | Eigenbasis
        cell_sigma = None
        if differs:
            of_cells = np.asarray(_find(adata, "obs", keys.cell_sigma), dtype=np.float64) if cells else np.empty(0)
            cell_sigma = torch.as_tensor(of_cells, device=device)
            cell_cov = Eigenbasis(small["cell_basis"][rows][:, rows], small["cell_eig"][rows], cell_sigma)
        else:
            cell_cov = Common(small["cell_cov"][rows][:, rows], len(cell_mean))
        posterior = NormalPosterior(
            **common,
            cell_cov=cell_cov,
            gene_cov=Eigenbasis(basis, eig, predictive),
            noise=NormalNoise(fit_sigma, predictive, cell_sigma),
        )
    return StoredFit(posterior, active, fitted, params, keys)


def _count_posterior(
    adata: AnnData,
    keys: FitKeys,
    params: Mapping[str, Any],
    common: dict[str, Any],
    fitted: np.ndarray,
    rows: Tensor,
    *,
    cells: bool,
) -> CountPosterior:
    """The posterior of a count likelihood, whose covariances differ by row."""
    device, likelihood = rows.device, str(params["likelihood"])
    gene_cov = Packed(read_packed(_find(adata, "varm", keys.gene_cov)[fitted], rows))
    if COUNTS[likelihood].LEARNS_DISPERSION:
        theta = np.asarray(_find(adata, "var", keys.gene_theta), dtype=np.float64)[fitted]
        dispersion = torch.as_tensor(1 / theta, device=device)
    else:
        dispersion = torch.zeros(int(fitted.sum()), dtype=torch.float64, device=device)
    if not cells:
        nothing = common["cell_mean"].new_empty(0)
        noise = CountNoise(likelihood, dispersion, nothing)
        return CountPosterior(**common, cell_cov=Packed(nothing.float()[:, None]), gene_cov=gene_cov, noise=noise)
    size = np.asarray(_find(adata, "obs", keys.size_factor), dtype=np.float64)
    noise = CountNoise(likelihood, dispersion, torch.as_tensor(np.log(size), device=device))
    if keys.cell_cov in adata.obsm:
        cell_cov: Packed | Recomputed = Packed(read_packed(adata.obsm[keys.cell_cov], rows))
    else:
        cell_cov = Recomputed.of(
            common["mu"],
            common["cell_mean"],
            common["gene_mean"],
            gene_cov,
            noise,
            common["cell_prior"],
            str(params["family"]),
        )
    return CountPosterior(**common, cell_cov=cell_cov, gene_cov=gene_cov, noise=noise)


_PRIOR = ("prior_cell_mean", "prior_cell_cov", "prior_gene_mean", "prior_gene_cov")
_OF_CELLS, _BY_CELL, _OF_GENES = ("cell_cov",), ("cell_basis", "cell_eig"), ("gene_basis", "gene_eig")


def _entry(uns: Mapping[str, Any], name: str, key: str) -> Any:
    if name not in uns:
        msg = f"uns[{key!r}] was not written by lfm.tl.fit: it has no {name!r}."
        raise KeyError(msg)
    return uns[name]


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
