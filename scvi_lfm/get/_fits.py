"""Tables of a fit: its factors, what they explain, and how many there are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from .._calls import named_arguments
from .._keys import PARAMS, RANK, VARIANCE_RATIO
from .._validate import check_count
from ._stored import array_of_fit, check_factors, stored_fields

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData


@named_arguments
def factors_df(
    adata: AnnData, *, factors: int | Sequence[int] | None = None, key: str = "lfm", n_genes: int | None = None
) -> pd.DataFrame:
    """Table of the gene embedding: how each gene loads on each factor.

    Parameters
    ----------
    adata
        Annotated data that holds a fit.
    factors
        Factor or factors, counted from 0; None takes all that are on.
    key
        The `key_added` of :func:`scvi_lfm.tl.fit`.
    n_genes
        Number of genes to keep for each factor; None keeps all.

    Returns
    -------
    One row for each gene of each factor, largest absolute loading first, with the columns

    - `factor`: index of the factor.
    - `gene`: name of the gene.
    - `loading`, `sd`: posterior mean and standard deviation of the loading. The sign of a factor is arbitrary.

    Genes that were not fitted are left out.

    Raises
    ------
    KeyError
        There is no such fit.
    TypeError, ValueError
        There is no such factor, or `n_genes` is no number of genes.

    Examples
    --------
    >>> import scvi_lfm as lfm
    >>> adata = lfm.datasets.simulate(n_cells=200, n_genes=50, n_factors=3)
    >>> lfm.tl.fit(adata, n_factors=3, progress=False)
    >>> lfm.get.factors_df(adata, factors=0, n_genes=5).columns.tolist()
    ['factor', 'gene', 'loading', 'sd']
    """
    stored_fields(adata, key, "fit")
    loadings, sds = (array_of_fit(adata, key, "varm", name) for name in ("gene_factors", "gene_factors_sd"))
    on = np.flatnonzero((sds > 0).any(0)).tolist()
    chosen = on if factors is None else check_factors(factors, loadings.shape[1])
    fitted = np.isfinite(loadings).all(1)
    genes, loadings, sds = adata.var_names[fitted].astype(str), loadings[fitted], sds[fitted]
    top = len(genes) if n_genes is None else check_count("n_genes", n_genes)
    orders = {k: np.argsort(-np.abs(loadings[:, k]), kind="stable")[:top] for k in chosen}
    rows = np.concatenate([*orders.values(), np.empty(0, dtype=np.intp)])
    factor = np.repeat(np.asarray(chosen, dtype=np.int64), [len(order) for order in orders.values()])
    return pd.DataFrame(
        {"factor": factor, "gene": genes[rows], "loading": loadings[rows, factor], "sd": sds[rows, factor]}
    )


@named_arguments
def uncertainty_df(adata: AnnData, *, key: str = "lfm") -> pd.DataFrame:
    r"""Table of how well each cell's place in the embedding is known.

    Parameters
    ----------
    adata
        Annotated data that holds a fit, or cells that :func:`scvi_lfm.tl.project` placed.
    key
        The `key_added` of :func:`scvi_lfm.tl.fit`.

    Returns
    -------
    One row for each cell, by its name in the index, with the columns

    - `sd`: :math:`\sqrt{\sum_k \mathrm{sd}_{ik}^2}` over the factors, the root mean square distance of the cell from
      its place, in units of `.obsm["X_lfm"]`. No rotation of the factors changes it.
    - `relative`: the same as a share of the root mean square distance of the cells in `adata` from their centre; 1
      where a cell may be anywhere among them.

    Under the Normal with one noise and no missing entries, all cells are known equally well.

    Raises
    ------
    KeyError
        There is no such fit.

    Examples
    --------
    >>> import scvi_lfm as lfm
    >>> adata = lfm.datasets.simulate(200, 50, 3)
    >>> lfm.tl.fit(adata, 3, progress=False)
    >>> adata.obs["lfm_sd"] = lfm.get.uncertainty_df(adata)["relative"]
    """
    stored_fields(adata, key, "fit")
    names = ("cell_factors", "cell_factors_sd")
    place, sds = (array_of_fit(adata, key, "obsm", name).astype(np.float64) for name in names)
    sd = np.sqrt(np.square(sds).sum(1))
    spread = np.sqrt(place.var(0).sum()) if len(place) else 0.0
    relative = sd / (spread if spread > 0 else np.nan)
    return pd.DataFrame({"sd": sd, "relative": relative}, index=adata.obs_names)


@named_arguments
def variance_df(adata: AnnData, *, key: str = "lfm") -> pd.DataFrame:
    """Table of the variance that each factor explains.

    Parameters
    ----------
    adata
        Annotated data that holds a fit.
    key
        The `key_added` of :func:`scvi_lfm.tl.fit`.

    Returns
    -------
    One row for each factor, with the columns

    - `factor`: index of the factor.
    - `variance_ratio`: under the Normal, share of the variance of the values around their genes' means that it
      explains; otherwise the same as `share`. 0 for a factor that is off.
    - `cumulative`: the same for this factor and all before it.
    - `share`: the factor's share of the variance of all factors together, which means the same for every likelihood;
      0 where all are off.

    Raises
    ------
    KeyError
        There is no such fit.

    Examples
    --------
    >>> import scvi_lfm as lfm
    >>> adata = lfm.datasets.simulate(n_cells=200, n_genes=50, n_factors=3)
    >>> lfm.tl.fit(adata, n_factors=3, progress=False)
    >>> lfm.get.variance_df(adata)["variance_ratio"].is_monotonic_decreasing
    True
    """
    stored = stored_fields(adata, key, "fit", VARIANCE_RATIO)
    ratio = np.asarray(stored[VARIANCE_RATIO], dtype=np.float64)
    table = pd.DataFrame({"factor": np.arange(len(ratio)), "variance_ratio": ratio, "cumulative": ratio.cumsum()})
    return table.assign(share=ratio / (ratio.sum() or 1.0))


@named_arguments
def rank_df(adata: AnnData, *, key: str = "lfm") -> pd.DataFrame:
    r"""Table of the evidence lower bound (ELBO) by number of factors, from a fit with `n_factors="auto"`.

    For the leading k factors of the fit, with genes, noise and scales solved for anew, it holds the ELBO and the
    effective number of factors (MacKay 1992),

    .. math::

        \sum_{l \le k} \Big( 1 - \frac{\langle \mathrm{var}(A_{il}) \rangle}{\langle E[A_{il}^2] \rangle} \Big) ,

    each factor counted by the share of it that the data tell. Up to the number chosen this is the last fit. Beyond, it
    is the last one that had that many factors, before the others were dropped; all are lower bounds, but those beyond
    had not settled, so that there is a step down after the number chosen.

    Parameters
    ----------
    adata
        Annotated data that holds a fit.
    key
        The `key_added` of :func:`scvi_lfm.tl.fit`.

    Returns
    -------
    One row for each number of factors from 0 on, with the columns

    - `n_factors`: number of factors k.
    - `elbo`: the ELBO, divided by the number of entries that are data. For counts an estimate.
    - `gain`: in nats, `elbo` minus that of no factors, times the number of entries.
    - `gain_error`: for counts, in nats, the standard error of what the last factor adds to `gain`: the ELBO is
      estimated from a sample of entries. A factor that adds less than that is not taken.
    - `effective`: effective number of factors.
    - `held_out_log_density`: log density of each entry held out, if any were; for counts, of those in the cells in
      which the ELBO is measured.
    - `chosen`: whether this is the number that the fit has.

    Raises
    ------
    KeyError
        There is no such fit, or its number of factors was not chosen but given.

    References
    ----------
    MacKay (1992), Bayesian interpolation, Neural Computation 4:415.

    Examples
    --------
    >>> import scvi_lfm as lfm
    >>> adata = lfm.datasets.simulate(200, 100, 3)
    >>> lfm.tl.fit(adata, "auto", progress=False)
    >>> table = lfm.get.rank_df(adata)
    >>> table.loc[table["chosen"], "n_factors"].item()
    3
    """
    stored = stored_fields(adata, key, "fit")
    if RANK not in stored:
        msg = f"The number of factors of uns[{key!r}] was given, not chosen. Run lfm.tl.fit(adata, n_factors='auto')."
        raise KeyError(msg)
    table = pd.DataFrame({name: np.asarray(stored[RANK][name]) for name in ("n_factors", "elbo", "effective")})
    n_entries = float(stored[RANK]["n_entries"])
    table.insert(2, "gain", (table["elbo"] - table["elbo"].iloc[0]) * n_entries)
    if "gain_error" in stored[RANK]:
        table.insert(3, "gain_error", np.asarray(stored[RANK]["gain_error"]) * n_entries)
    if "held_out_log_density" in stored[RANK]:
        table["held_out_log_density"] = np.asarray(stored[RANK]["held_out_log_density"])
    table["chosen"] = table["n_factors"] == int(stored[PARAMS]["n_factors"])
    return table
