"""The only writer and reader of a fit's fields in an AnnData."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .._context import prepare_threads
from .._keys import HELD_OUT, LEVEL, VALUES, FitKeys, fit_keys
from .._memory import naming_memory
from .._settings import settings
from .._validate import check_key
from ..linalg.covariances import Packed
from ..model import Gaussian
from ..model.likelihoods import COUNTS
from ..model.noise import CountNoise
from .fields import all_or_nothing, entry, find, numbers
from .joined import check_cells_fit_record, check_genes_fit_record, check_present
from .posterior import CountPosterior, NormalPosterior
from .recomputed import Recomputed
from .stored_covariances import packed_of_free, packed_with_known, padded_packed, read_packed, stored_bytes
from .stored_covariates import known_of_cells, n_known
from .stored_normal import read_normal, small_fields
from .stored_record import check_record

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import pandas as pd
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
    values: Mapping[str, Any]  # their kind; empty in fits stored before it was
    level: float = 0.0  # of the values as they were read: the posterior, mu too, is that of values less this


def write_cells(adata: AnnData, keys: FitKeys, q: AnyPosterior, active: np.ndarray) -> None:
    """Write (a, A) with their standard deviations, and what else belongs to cells, into obs and obsm."""
    sd = np.broadcast_to(_numpy(q.cell_cov.diagonals().sqrt()), q.cell_mean.shape)
    adata.obsm[keys.cell_factors] = _pad(_numpy(q.cell_factors), active).astype(np.float32)
    adata.obsm[keys.cell_factors_sd] = _pad(sd[:, 1 + q.n_known :], active).astype(np.float32)
    adata.obs[keys.cell_activity] = _numpy(q.cell_mean[:, 0]).astype(np.float32)
    adata.obs[keys.cell_activity_sd] = sd[:, 0].astype(np.float32)
    if isinstance(q, CountPosterior):
        adata.obs[keys.size_factor] = _numpy(q.noise.log_size.exp()).astype(np.float32)
    elif q.noise.cell is not None:
        adata.obs[keys.cell_sigma] = _numpy(q.noise.cell).astype(np.float32)
    adata.obsm.pop(keys.cell_cov, None)
    if isinstance(q.cell_cov, Packed) and stored_bytes(len(active), adata.n_obs) <= settings.max_cov_bytes:
        rows = np.concatenate([[True], active])
        adata.obsm[keys.cell_cov] = padded_packed(packed_of_free(q.cell_cov.values, q.n_known), rows)


@naming_memory("store the fit")
def write_fit(
    adata: AnnData,
    key: str,
    posterior: AnyPosterior,
    *,
    n_factors: int,
    fitted: np.ndarray,
    record: Mapping[str, Any],
) -> None:
    """Write a fit under `key`; `record` holds what else belongs into uns, `params` and any level of the values."""
    keys = fit_keys(key)
    active = np.arange(n_factors) < posterior.n_factors
    first = 1 + posterior.n_known
    rows = np.concatenate([np.ones(first, dtype=bool), active])

    def padded(matrix: Tensor) -> np.ndarray:
        full = np.zeros((len(rows), len(rows)))
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
        "mu": posterior.mu + float(record.get(LEVEL, 0.0)),
        "prior_cell_mean": padded_vector(posterior.cell_prior.mean),
        "prior_cell_cov": padded(posterior.cell_prior.cov),
        "prior_gene_mean": padded_vector(posterior.gene_prior.mean),
        "prior_gene_cov": padded(posterior.gene_prior.cov),
    }
    varm = {
        keys.gene_factors: per_gene(_pad(_numpy(posterior.gene_factors), active)),
        keys.gene_factors_sd: per_gene(_pad(_numpy(gene_sd[:, first:]), active)),
    }
    if posterior.n_known:
        varm[keys.gene_beta] = per_gene(_numpy(posterior.gene_mean[:, 1:first]))
        varm[keys.gene_beta_sd] = per_gene(_numpy(gene_sd[:, 1:first]))
    var = {
        keys.gene_abundance: per_gene(_numpy(posterior.gene_mean[:, 0])),
        keys.gene_abundance_sd: per_gene(_numpy(gene_sd[:, 0])),
    }
    if isinstance(posterior.gene_cov, Packed):
        varm[keys.gene_cov] = per_gene(padded_packed(posterior.gene_cov.values, rows))
    if isinstance(posterior, CountPosterior):
        if COUNTS[posterior.noise.likelihood].learns_dispersion:
            var[keys.gene_theta] = per_gene(_numpy(1 / posterior.noise.dispersion))
    else:
        var[keys.gene_sigma] = per_gene(_numpy(posterior.noise.predictive))
        uns |= small_fields(posterior, padded, padded_vector)
    with all_or_nothing(adata):
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
    if keys.gene_sigma in written and keys.size_factor in adata.obs:
        del adata.obs[keys.size_factor]
    for name in (keys.gene_beta, keys.gene_beta_sd):
        if name not in written:
            adata.varm.pop(name, None)
    for name in (keys.gene_sigma, keys.gene_theta):
        if name in adata.var and name not in written:
            del adata.var[name]


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
    device = torch.device("cpu") if device is None else device
    uns = find(adata, "uns", keys.uns)
    params = check_record(uns, key)
    counts = params.get("likelihood") in COUNTS
    small = {
        name: torch.as_tensor(np.asarray(entry(uns, name, key), dtype=np.float64), device=device) for name in _PRIOR
    }
    p, level = n_known(uns), float(uns.get(LEVEL, 0.0))
    on = small["prior_cell_cov"].diagonal()[1 + p :] > 0
    rows, active = torch.cat([on.new_ones(1 + p), on]), on.cpu().numpy()
    gene_mean = _block(adata, "var", keys.gene_abundance, "varm", keys.gene_factors, active)
    if p:
        beta = numbers(adata, "varm", keys.gene_beta)
        if beta.shape != (adata.n_vars, p):
            msg = (
                f"varm[{keys.gene_beta!r}] has shape {beta.shape}, but the fit has {p} covariate(s). It was "
                "overwritten since; run lfm.tl.fit again."
            )
            raise ValueError(msg)
        gene_mean = np.column_stack([gene_mean[:, :1], beta, gene_mean[:, 1:]])
    fitted = np.isfinite(gene_mean[:, 0])
    if not fitted.any():
        msg = f"None of the {adata.n_vars} gene(s) of `adata` was fitted (uns[{keys.uns!r}])."
        raise ValueError(msg)
    if cells:
        cell_mean = _block(adata, "obs", keys.cell_activity, "obsm", keys.cell_factors, active)
        check_present(adata, cell_mean, keys)
        cell_mean = np.column_stack([cell_mean[:, :1], known_of_cells(adata, uns), cell_mean[:, 1:]])
    else:
        cell_mean = np.empty((0, len(gene_mean[0])))
    common: dict[str, Any] = {
        "mu": float(entry(uns, "mu", key)) - level,
        "cell_mean": torch.as_tensor(cell_mean, device=device),
        "gene_mean": torch.as_tensor(gene_mean[fitted], device=device),
        "cell_prior": Gaussian(small["prior_cell_mean"][rows], small["prior_cell_cov"][rows][:, rows]),
        "gene_prior": Gaussian(small["prior_gene_mean"][rows], small["prior_gene_cov"][rows][:, rows]),
        "n_known": p,
    }
    read: Callable[..., AnyPosterior] = _count_posterior if counts else read_normal
    posterior = read(adata, keys, params, common, fitted, rows, cells=cells)
    check_genes_fit_record(adata, keys, posterior.gene_cov, active, fitted, gene_mean[fitted])
    if cells:
        check_cells_fit_record(adata, keys, posterior.cell_cov, active, p)
    return StoredFit(posterior, active, fitted, params, keys, uns.get(VALUES, {}), level)


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
    gene_cov = Packed(read_packed(adata, "varm", keys.gene_cov, rows, fitted))
    if COUNTS[likelihood].learns_dispersion:
        theta = numbers(adata, "var", keys.gene_theta)[fitted]
        _check_positive(theta > 0, theta, f"var[{keys.gene_theta!r}]", "gene", adata.var_names[fitted])
        dispersion = torch.as_tensor(1 / theta, device=device)
    else:
        dispersion = torch.zeros(int(fitted.sum()), dtype=torch.float64, device=device)
    if not cells:
        nothing = common["cell_mean"].new_empty(0)
        noise = CountNoise(likelihood, dispersion, nothing)
        return CountPosterior(**common, cell_cov=Packed(nothing.float()[:, None]), gene_cov=gene_cov, noise=noise)
    size = numbers(adata, "obs", keys.size_factor)
    positive = (size > 0) & np.isfinite(size)
    _check_positive(positive, size, f"obs[{keys.size_factor!r}]", "cell", adata.obs_names)
    noise = CountNoise(likelihood, dispersion, torch.as_tensor(np.log(size), device=device))
    # without it covariances are computed anew, as if every entry were data
    if keys.cell_cov in adata.obsm or params.get("observed") == "stored" or HELD_OUT in params:
        of_cells = torch.cat([rows[:1], rows[1 + common["n_known"] :]])
        values = read_packed(adata, "obsm", keys.cell_cov, of_cells)
        cell_cov: Packed | Recomputed = Packed(packed_with_known(values, common["n_known"]))
    else:
        cell_cov = Recomputed.of(
            common["mu"],
            common["cell_mean"],
            common["gene_mean"],
            gene_cov,
            noise,
            common["cell_prior"].given_known(common["n_known"]),
            str(entry(params, "family", keys.uns)),
        )
    return CountPosterior(**common, cell_cov=cell_cov, gene_cov=gene_cov, noise=noise)


_PRIOR = ("prior_cell_mean", "prior_cell_cov", "prior_gene_mean", "prior_gene_cov")


def _block(adata: AnnData, frame: str, scalar: str, matrices: str, vector: str, active: np.ndarray) -> np.ndarray:
    """(a, A) or (b, B) of the active factors, float64."""
    first = numbers(adata, frame, scalar)
    rest = numbers(adata, matrices, vector)
    if rest.ndim != 2 or rest.shape[1] != len(active):
        msg = (
            f"{matrices}[{vector!r}] has shape {rest.shape}, but the fit has {len(active)} factors. "
            "It was overwritten since; run lfm.tl.fit again."
        )
        raise ValueError(msg)
    return np.column_stack([first, rest[:, active]])


def _check_positive(positive: np.ndarray, values: np.ndarray, where: str, what: str, names: pd.Index) -> None:
    wrong = ~positive
    if wrong.any():
        msg = (
            f"{where} must be positive, found {values[wrong][0]:g} in {what} {names[wrong][0]!r}, first of "
            f"{wrong.sum()} {what}(s): it was changed after the fit. Put it back, or run lfm.tl.fit(adata) again."
        )
        raise ValueError(msg)


def _pad(values: np.ndarray, active: np.ndarray) -> np.ndarray:
    full = np.zeros((len(values), len(active)))
    full[:, active] = values
    return full


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()
