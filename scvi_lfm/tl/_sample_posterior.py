"""`tl.sample_posterior`: draws of the latents."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from .._memory import naming_memory
from .._validate import check_anndata, check_count, resolve_rng
from ._open import open_fit
from ._tool import tool

if TYPE_CHECKING:
    from anndata import AnnData
    from torch import Tensor

    from ..posterior import StoredFit

# of the draws that are made together, so that covariances are factored once for all of them
NOISE_BYTES = 2**26


@tool
def sample_posterior(
    adata: AnnData, n_samples: int, *, rng: int | np.random.Generator = 0, key: str = "lfm"
) -> dict[str, np.ndarray]:
    """Draw from the variational posterior of the stored fit.

    Rows of cells and of genes are drawn jointly: (a_i, A_i) together and (b_j, B_j) together, in the stored gauge.
    Variational posteriors are too narrow in the tails: use the draws for intervals of functions of the latents, not
    for rare events.

    Parameters
    ----------
    adata
        Annotated data with a fit (:func:`scvi_lfm.tl.fit`).
    n_samples
        Number of draws s. Each takes (n + m) (r + 1) float32 values.
    rng
        Seed or generator.
    key
        Stem under which the fit is stored.

    Returns
    -------
    A dictionary of float32 arrays, without anything written into `adata`: `"mu"` (), its mean, since its variational
    spread is far too narrow to be of use, in float64 where the values have a common level; `"a"` (s, n), `"A"`
    (s, n, r), `"b"` (s, m), `"B"` (s, m, r), and with covariates the coefficients `"beta"` (s, m, p). Factors that are
    off are zero; genes that were left out of the fit are NaN.

    Raises
    ------
    KeyError
        There is no such fit.
    TypeError, ValueError
        `n_samples` or `rng` cannot be used.

    Examples
    --------
    >>> import scvi_lfm as lfm
    >>> adata = lfm.datasets.simulate(n_cells=200, n_genes=50, n_factors=3)
    >>> lfm.tl.fit(adata, n_factors=3, progress=False)
    >>> lfm.tl.sample_posterior(adata, 10)["B"].shape
    (10, 50, 3)
    """
    check_anndata(adata)
    n_samples = check_count("n_samples", n_samples)
    generator = torch.Generator().manual_seed(int(resolve_rng(rng).integers(2**31)))
    return _draw(open_fit(adata, key), n_samples, generator)


@naming_memory("draw so many samples", "Pass a smaller n_samples")
def _draw(stored: StoredFit, n_samples: int, generator: torch.Generator) -> dict[str, np.ndarray]:
    q = stored.posterior
    first = 1 + q.n_known
    columns = np.concatenate([np.ones(first, dtype=bool), stored.active])
    cells = np.zeros((n_samples, len(q.cell_mean), len(columns)), dtype=np.float32)
    genes = np.full((n_samples, len(stored.fitted), len(columns)), np.nan, dtype=np.float32)
    genes[:, stored.fitted] = 0
    parts = (
        (cells, q.cell_mean, q.cell_cov, np.ones(len(q.cell_mean), dtype=bool)),
        (genes, q.gene_mean, q.gene_cov, stored.fitted),
    )
    size = 8 * (q.cell_mean.numel() + q.gene_mean.numel())
    together = max(1, NOISE_BYTES // size)
    for start in range(0, n_samples, together):
        draws = slice(start, min(start + together, n_samples))
        noise = [[_noise_like(mean, generator) for _, mean, _, _ in parts] for _ in range(draws.stop - start)]
        for (out, mean, cov, rows), own in zip(parts, zip(*noise, strict=True), strict=True):
            drawn = mean + cov.spread(torch.stack(own))
            out[draws][:, np.outer(rows, columns)] = drawn.flatten(1).numpy()
    latents = {
        "mu": np.asarray(q.mu + stored.level, dtype=np.float64 if stored.level else np.float32),
        "a": cells[:, :, 0],
        "A": cells[:, :, first:],
        "b": genes[:, :, 0],
        "B": genes[:, :, first:],
    }
    return latents | ({"beta": genes[:, :, 1:first]} if q.n_known else {})


def _noise_like(mean: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(mean.shape, generator=generator, dtype=torch.float64, device=generator.device)
