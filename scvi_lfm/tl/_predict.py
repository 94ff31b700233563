"""`tl.predict`: expected values of entries, with their uncertainty."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from .._memory import naming_memory
from .._validate import as_list, check_anndata, check_fraction, locate
from .._workers import for_each
from ..data.blocks import slices
from ..data.lazy_rows import chunks_of_cells, lazy_rows
from ..posterior.dense_blocks import block_size
from ..posterior.predictive import BlockPredictor, eta_of_grid, eta_of_pairs
from ._open import open_fit
from ._overwriting import check_free, write_fields
from ._rank_cells import fitted_positions
from ._tool import tool

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from ..posterior import StoredFit
    from ..posterior.posterior import Posterior

MAX_LAYER_BYTES = 2**30
MAX_ROWS = 10_000_000


@tool
def predict(
    adata: AnnData,
    *,
    obs_names: str | Sequence[str] | None = None,
    var_names: str | Sequence[str] | None = None,
    pairs: bool = False,
    quantiles: Sequence[float] = (0.05, 0.95),
    layer_added: str | None = None,
    key: str = "lfm",
) -> pd.DataFrame | None:
    r"""Predict the values of entries from the fit alone.

    .. math::

        E[\eta_{ij}] = \mu + a_i + b_j + A_i \cdot B_j, \qquad
        \mathrm{var}(y_{ij}) = u_i' T_j u_i + v_j' S v_j + \mathrm{tr}(S_{AA} T_{BB,j}) + \tilde\sigma_j^2

    with u = (1, A), v = (1, B) at their means and the noise for predicting; with `noise="cell_gene"` the last term is
    :math:`\sigma_i^2 \tilde\sigma_j^2`. For counts eta is the log of the rate, the size factor in it, and the
    predictive is the negative binomial with the moments that the uncertainty of eta and the dispersion give together.

    Parameters
    ----------
    adata
        Annotated data with a fit (:func:`scvi_lfm.tl.fit`).
    obs_names
        Cells, one or several names.
    var_names
        Genes, one or several names that were fitted.
    pairs
        False: every cell with every gene. True: the first cell with the first gene, the second with the second, ...
    quantiles
        Quantiles of the predictive distribution to give, each between 0 and 1.
    layer_added
        Instead of a table: write the expected value of every cell and gene into this layer, dense float32 (float64
        where the values have a common level). Where the fitted values are a dask array, as in a file that was read
        lazily, so is the layer, in the same chunks of cells: each is computed when it is asked for, by the workers of
        a cluster where there are any, and `adata.write_zarr` writes one after the other. Else it is
        refused where it would take more than 1 GiB; and always where the layer exists and is no earlier prediction.
    key
        Stem under which the fit is stored.

    Returns
    -------
    A data frame with columns `cell`, `gene`, `expected` (the value: eta, or a count), `sd` (of eta), `predictive_sd`
    (of the value) and one for each quantile of the value (`q0.05`, `q0.95`); of levels (`likelihood="ordinal"`)
    also one for the probability of each (`p_1`, `p_2`, ...). With `layer_added`, None, and

    `.layers[layer_added]` : (n, m)
        Expected values: eta, or counts; an array, or a dask array. NaN for genes that were left out of the fit.
    `.uns['lfm_written']` : dict
        Which tool wrote which field, by container and name.

    Raises
    ------
    KeyError
        There is no such fit, cell or gene.
    ValueError
        The arguments do not fit together, the answer would be too large, or something else would be overwritten.

    Examples
    --------
    >>> import scvi_lfm as lfm
    >>> adata = lfm.datasets.simulate(n_cells=200, n_genes=50, n_factors=3)
    >>> lfm.tl.fit(adata, n_factors=3, progress=False)
    >>> lfm.tl.predict(adata, obs_names="cell_0", var_names=["gene_0", "gene_1"]).shape
    (2, 7)
    """
    check_anndata(adata)
    if layer_added is not None:
        check_free(adata, "predict", layer_added, _places, argument="layer_added")
    stored = open_fit(adata, key)
    if layer_added is not None:
        if obs_names is not None or var_names is not None:
            msg = "`layer_added` writes every cell and gene: leave out `obs_names` and `var_names`, or `layer_added`."
            raise ValueError(msg)
        expected = _expected_layer(adata, stored)
        write_fields(adata, "predict", dict.fromkeys(_places(layer_added), expected))
        return None
    if obs_names is None or var_names is None:
        msg = "Pass `obs_names` and `var_names` (the entries to predict), or `layer_added` for all of them."
        raise ValueError(msg)
    levels = [check_fraction("quantiles", level) for level in as_list("quantiles", quantiles)]
    cells = locate("obs_names", obs_names, adata.obs_names, "obs")
    genes = fitted_positions(adata, "var_names", var_names, stored.fitted)
    _check_entries(cells, genes, pairs=pairs)
    return _table(adata, stored, cells, genes, levels, pairs=pairs)


def _places(layer: str) -> list[tuple[str, str]]:
    return [("layers", layer)]


def _check_entries(cells: np.ndarray, genes: np.ndarray, *, pairs: bool) -> None:
    """Raise unless cells and genes make pairs, or the table of all of them is not too long."""
    if pairs and len(cells) != len(genes):
        msg = f"With `pairs`, `obs_names` and `var_names` must be equally long: found {len(cells)}, {len(genes)}."
        raise ValueError(msg)
    if not pairs and len(cells) * len(genes) > MAX_ROWS:
        msg = (
            f"{len(cells)} cells x {len(genes)} genes make {len(cells) * len(genes):,} rows, more than {MAX_ROWS:,}. "
            "Ask for fewer, or pass pairs=True with the entries you need."
        )
        raise ValueError(msg)


@naming_memory("predict", "Ask for fewer entries")
def _table(
    adata: AnnData, stored: StoredFit, cells: np.ndarray, genes: np.ndarray, levels: Sequence[float], *, pairs: bool
) -> pd.DataFrame:
    """One row for each pair, or for each cell with each gene."""
    q = stored.posterior
    eta = (eta_of_pairs if pairs else eta_of_grid)(q, torch.from_numpy(cells), torch.from_numpy(genes))
    if not pairs:
        cells, genes = np.repeat(cells, len(genes)), np.tile(genes, len(cells))
    rows, columns = torch.from_numpy(cells), torch.from_numpy(genes)
    names = {
        "cell": adata.obs_names.to_numpy()[cells],
        "gene": adata.var_names.to_numpy()[stored.fitted][genes],
    }
    law = q.law(eta, rows, columns)
    table = {
        "expected": law.mean().numpy() + stored.level,
        "sd": eta.var.sqrt().numpy(),
        "predictive_sd": law.variance().sqrt().numpy(),
    }
    quantiles = {f"q{level:g}": law.quantile(level) + stored.level for level in levels}
    every = {f"p_{value:g}": law.log_density(torch.full_like(eta.mean, value)).exp().numpy() for value in law.levels()}
    return pd.DataFrame(names | table | quantiles | every)


@naming_memory("predict", "Ask for fewer entries: obs_names and var_names")
def _expected_layer(adata: AnnData, stored: StoredFit) -> Any:
    """Expected values of all cells: an array, or one of dask that is computed where and when it is needed."""
    dtype = np.dtype(np.float64 if stored.level else np.float32)
    size, chunks = adata.n_obs * adata.n_vars * dtype.itemsize, chunks_of_cells(adata, stored.arguments.layer)
    if chunks is None and size > MAX_LAYER_BYTES:
        chunked = ", or adata.X = dask.array.from_array(adata.X, chunks=(1000, -1), asarray=False)"
        msg = (
            f"The layer would take {size / 2**30:.1f} GiB, more than 1 GiB. Pass obs_names= and var_names= for the "
            "entries you need, or have the values that were fitted as a dask array (anndata.experimental.read_lazy"
            f"{'' if adata.isbacked else chunked}): the layer is then one too, computed a chunk at a time when it is "
            "needed."
        )
        raise ValueError(msg)
    predictor, fitted, level = BlockPredictor(stored.posterior), stored.fitted, stored.level
    genes = slice(None) if fitted.all() else fitted

    def rows(q: Posterior) -> np.ndarray:
        layer = np.full((len(q.cell_mean), len(fitted)), np.nan, dtype)

        def fill(cells: slice) -> None:
            layer[cells, genes] = predictor.expected(q.at_cells(cells)).numpy()
            if level:
                layer[cells] += level

        for_each(fill, slices(*layer.shape, size=block_size(layer.shape[1])))
        return layer

    if chunks is None:
        return rows(stored.posterior)
    ends = np.cumsum([0, *chunks]).tolist()
    parts = [stored.posterior.at_cells(slice(*ends[k : k + 2])) for k in range(len(chunks))]
    return lazy_rows(rows, parts, chunks, adata.n_vars, dtype)
