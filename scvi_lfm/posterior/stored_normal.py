"""What the Normal and the Student t alone have among a fit's fields: noise, and covariances in their three forms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .._keys import BY_ROW
from ..linalg.covariances import Common, Eigenbasis, Packed, PackedUnderNoise
from ..model.noise import NormalNoise
from .fields import entry, numbers
from .posterior import NormalPosterior
from .stored_covariances import read_packed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from anndata import AnnData
    from torch import Tensor

    from .._keys import FitKeys


def small_fields(
    q: NormalPosterior, padded: Callable[[Tensor], np.ndarray], padded_vector: Callable[[Tensor], np.ndarray]
) -> dict[str, Any]:
    """What goes into uns: the fit's noise, and covariances as far as cells or genes share them."""
    fields: dict[str, Any] = {"sigma": _root_mean_square(q.noise.sigma)}
    if q.noise.df is not None:
        fields["df"] = q.noise.df
    if isinstance(q.gene_cov, Eigenbasis):
        fields |= {"gene_basis": padded(q.gene_cov.basis), "gene_eig": padded_vector(q.gene_cov.eig)}
    else:
        fields[BY_ROW] = True
    if isinstance(q.cell_cov, Eigenbasis):
        fields |= {"cell_basis": padded(q.cell_cov.basis), "cell_eig": padded_vector(q.cell_cov.eig)}
    elif isinstance(q.cell_cov, Common):
        fields["cell_cov"] = padded(q.cell_cov.matrix)
    return fields


def read_normal(
    adata: AnnData,
    keys: FitKeys,
    params: Mapping[str, Any],
    common: dict[str, Any],
    fitted: np.ndarray,
    rows: Tensor,
    *,
    cells: bool,
) -> NormalPosterior:
    """The posterior under the Normal likelihood, of the factors `rows`, from what all likelihoods share."""
    device, uns = rows.device, adata.uns[keys.uns]

    def small(name: str) -> Tensor:
        values = torch.as_tensor(np.asarray(entry(uns, name, keys.uns), dtype=np.float64), device=device)
        return values[rows] if values.ndim == 1 else values[rows][:, rows]

    sigma = numbers(adata, "var", keys.gene_sigma)[fitted]
    if not ((sigma >= 0) & np.isfinite(sigma)).all():
        msg = (
            f"var[{keys.gene_sigma!r}] must not be negative, missing or infinite where genes were fitted: it was "
            "changed after the fit. Put it back, or run lfm.tl.fit(adata) again."
        )
        raise ValueError(msg)
    predictive = torch.as_tensor(sigma, device=device)
    shared = params["noise"] == "shared"
    fit_sigma = torch.full_like(predictive, float(entry(uns, "sigma", keys.uns))) if shared else predictive
    cell_cov: Common | Eigenbasis | Packed
    gene_cov: Eigenbasis | PackedUnderNoise
    cell_sigma = None
    if uns.get(BY_ROW, False):
        packed = read_packed(adata, "varm", keys.gene_cov, rows, fitted)
        gene_cov = PackedUnderNoise(packed, predictive, common["gene_prior"].cov)
        cell_cov = Packed(read_packed(adata, "obsm", keys.cell_cov, rows) if cells else packed[:0])
    else:
        gene_cov = Eigenbasis(small("gene_basis"), small("gene_eig"), predictive)
        if params["noise"] == "cell_gene":
            of_cells = numbers(adata, "obs", keys.cell_sigma) if cells else np.empty(0)
            cell_sigma = torch.as_tensor(of_cells, device=device)
            cell_cov = Eigenbasis(small("cell_basis"), small("cell_eig"), cell_sigma)
        else:
            cell_cov = Common(small("cell_cov"), len(common["cell_mean"]))
    df = float(entry(uns, "df", keys.uns)) if params.get("likelihood") == "student_t" else None
    noise = NormalNoise(fit_sigma, predictive, cell_sigma, df)
    return NormalPosterior(**common, cell_cov=cell_cov, gene_cov=gene_cov, noise=noise)


def _root_mean_square(sigma: Tensor) -> float:
    # equal values come back as they are, to the bit
    same = bool((sigma == sigma[0]).all())
    return float(sigma[0] if same else sigma.square().mean().sqrt())
