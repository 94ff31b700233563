"""Table of how the bound of a fit rose."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .._calls import named_arguments
from .._keys import ELBO, HELD_OUT, PARAMS
from ._stored import stored_fields

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData


@named_arguments
def elbo_df(adata: AnnData, *, key: str = "lfm") -> pd.DataFrame:
    """Table of the evidence lower bound (ELBO) in the course of a fit.

    Parameters
    ----------
    adata
        Annotated data that holds a fit.
    key
        The `key_added` of :func:`scvi_lfm.tl.fit`.

    Returns
    -------
    One row for each evaluation, with the columns

    - `epoch`: passes over the cells that were done.
    - `value`: the ELBO, divided by the number of entries that are data.
    - `gain`: `value` minus that of the model without factors.
    - `share`: `gain` as a share of the last row's; missing where the factors gained nothing.
    - `missing`: what is estimated to lie between `value` and where the bound would end, as a share of the factors'
      gain there; missing where nothing tells, as of `engine="pyro"`.
    - `held_out_log_density`, `held_out_rmse`: how well each entry held out was predicted, if any were.

    Raises
    ------
    KeyError
        There is no such fit.

    Notes
    -----
    The last row is the bound of the result, after a last pass over all cells; the rows before it are those by which the
    fit was stopped. Their gains shrink about geometrically, so the last two tell how much was still to come. That much
    is taken to lie above the highest bound of the fit. Under likelihoods other than Normal, the last pass counts as one
    more row, and what it was expected to gain is not missing. It is the estimate that `tol` of :func:`scvi_lfm.tl.fit`
    is held against, and like all extrapolation it may be too hopeful: :func:`scvi_lfm.tl.check` compares with another
    fit. Where genes of counts were left out of epochs, as they tell little, only the last row speaks of them, and it
    may lie a little below the one before.

    Examples
    --------
    >>> import scvi_lfm as lfm
    >>> adata = lfm.datasets.simulate(n_cells=200, n_genes=50, n_factors=3)
    >>> lfm.tl.fit(adata, n_factors=3, progress=False)
    >>> lfm.get.elbo_df(adata)["share"].iloc[-1].item()
    1.0
    """
    stored = stored_fields(adata, key, "fit", ELBO)
    elbo, held_out = stored[ELBO], stored.get(HELD_OUT, {})
    value = np.asarray(elbo["value"], dtype=np.float64)
    gain = value - float(elbo["rank0"])
    last = gain[-1] if len(gain) and gain[-1] > 0 else np.nan
    table = pd.DataFrame({"epoch": np.asarray(elbo["epoch"]), "value": value, "gain": gain, "share": gain / last})
    table["missing"] = _missing(value, float(elbo["rank0"]), stored.get(PARAMS, {}))
    names = [name for name in ("log_density", "rmse") if name in held_out]
    return table.assign(**{f"held_out_{name}": np.asarray(held_out[name], dtype=np.float64) for name in names})


def _missing(value: np.ndarray, rank0: float, params: Mapping[str, Any]) -> list[float]:
    """Share of the factors' gain that is missing after each evaluation."""
    from ..inference.convergence import shares_missing  # torch comes with these, which no other table needs
    from ..model.likelihoods import LIKELIHOODS

    if params.get("engine") == "pyro":
        return [np.nan] * len(value)
    linear = LIKELIHOODS[params.get("likelihood", "normal")].linear
    return shares_missing(value.tolist(), rank0, ahead=0 if linear else 1)
