"""`tl.recommend`: the best entries of each row that are not stored yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from .._validate import check_anndata, check_choice, check_count, check_fraction, check_not_empty, locate, place_of
from ..data import read_matrix
from ..posterior.best_entries import best_unseen, upper_bound
from ..posterior.posterior import Moments
from ._open import open_fit
from ._predict import MAX_ROWS
from ._tool import tool
from ._values import layer_of_fit, read_as_fitted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from torch import Tensor

    from ..posterior import Posterior
    from ..posterior.best_entries import Chosen


@tool
def recommend(
    adata: AnnData,
    obs_names: str | Sequence[str] | None = None,
    n_top: int = 10,
    *,
    order: str = "expected",
    level: float = 0.9,
    layer: str | None = None,
    key: str = "lfm",
) -> pd.DataFrame:
    r"""Find the best entries of each row that are not stored yet: what a user may like, what a cell may express.

    Entries that the matrix stores have been seen, a stored zero (a rating of zero) and held-out entries too; all others
    compete. They are ordered by their expected value, or by the upper bound

    .. math:: E[\eta_{ij}] + \Phi^{-1}(\mathrm{level}) \, \mathrm{var}(\eta_{ij})^{1/2}

    which favours what is good or not well known, so that asking teaches something. The standard deviation is that of
    what is expected, without the noise of a single value. For the predictive distribution of the entries pass them to
    :func:`scvi_lfm.tl.predict` with `pairs=True`; for new users, place them with :func:`scvi_lfm.tl.project` first.

    Parameters
    ----------
    adata
        Annotated data with a fit (:func:`scvi_lfm.tl.fit`), or placed by :func:`scvi_lfm.tl.project`.
    obs_names
        Rows, one or several names; None takes all.
    n_top
        Number of entries for each row; fewer where fewer are left.
    order
        `"expected"` or `"upper"`.
    level
        Posterior probability that the expected value lies below the upper bound, between 0 and 1. 0.5 is the expected
        eta itself.
    layer
        Sparse layer whose stored entries have been seen; None means what the fit read.
    key
        Stem under which the fit is stored.

    Returns
    -------
    A data frame with a row for each entry, those of a cell together: `cell`, `gene` (names), `rank` (from 1),
    `expected` (the value: eta, or a count), `sd` (of eta, which is the log rate for counts) and `upper` (the bound, on
    the scale of the values: eta, or the expected count at that eta). Genes that were not fitted are left out.

    Raises
    ------
    KeyError
        There is no such fit, cell or layer.
    TypeError
        An argument is of the wrong type.
    ValueError
        The matrix is dense, so that every entry has been seen; what the fit read was since replaced by values of
        another kind; an argument is out of its range; or the table would have more than ten million rows.

    Examples
    --------
    >>> import scvi_lfm as lfm
    >>> adata = lfm.datasets.simulate(200, 50, 3, likelihood="poisson")
    >>> lfm.tl.fit(adata, n_factors=3, progress=False)
    >>> lfm.tl.recommend(adata, ["cell_0", "cell_1"], n_top=3).shape
    (6, 6)
    """
    check_anndata(adata)
    check_not_empty(adata)
    n_top = check_count("n_top", n_top)
    check_choice("order", order, ("expected", "upper"))
    sds = float(torch.special.ndtri(torch.tensor(check_fraction("level", level), dtype=torch.float64, device="cpu")))
    stored = open_fit(adata, key)
    rows = np.arange(adata.n_obs) if obs_names is None else locate("obs_names", obs_names, adata.obs_names, "obs")
    _check_size(len(rows), min(n_top, int(stored.fitted.sum())))
    if layer is None:
        of_genes = stored.posterior.expected_values()
        matrix, layer = read_as_fitted(adata, stored, layer, genes=stored.fitted, expected=of_genes)
    else:  # which entries were seen, by whatever values
        matrix = read_matrix(adata, layer_of_fit(adata, stored, layer), genes=stored.fitted)
    if not matrix.source.is_sparse:
        where = place_of(layer)
        msg = (
            f"{where} is dense, so every entry has been seen and none is left to recommend. Store the entries that "
            "have been seen in a sparse layer and pass layer=, or see tl.predict."
        )
        raise ValueError(msg)
    chosen = best_unseen(stored.posterior, rows, matrix.source, n_top, sds=sds if order == "upper" else None)
    names = {
        "cell": adata.obs_names.to_numpy()[rows][chosen.rows.numpy()],
        "gene": adata.var_names.to_numpy()[stored.fitted][chosen.genes.numpy()],
    }
    row = pd.Series(chosen.rows.numpy())
    values = _values(stored.posterior, torch.from_numpy(rows), chosen, sds)
    if stored.level:
        values |= {name: values[name] + stored.level for name in ("expected", "upper")}
    return pd.DataFrame(names | {"rank": row.groupby(row).cumcount() + 1} | values)


def _check_size(n_rows: int, n_top: int) -> None:
    if n_rows * n_top > MAX_ROWS:
        msg = (
            f"{n_rows} rows with {n_top} entries each make {n_rows * n_top:,}, more than {MAX_ROWS:,}. "
            "Pass fewer obs_names, or a smaller n_top."
        )
        raise ValueError(msg)


def _values(q: Posterior, rows: Tensor, chosen: Chosen, sds: float) -> dict[str, np.ndarray]:
    cells, eta, sd = rows[chosen.rows], chosen.eta, chosen.eta.var.sqrt()
    known = Moments(upper_bound(eta, sds), torch.zeros_like(sd))
    expected, upper = (q.law(moments, cells, chosen.genes).mean().numpy() for moments in (eta, known))
    return {"expected": expected, "sd": sd.numpy(), "upper": upper}
