"""`tl.check`: whether a fit has converged, and whether its predictions can be trusted."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
import torch

from .._context import resolve_rng
from .._keys import ELBO
from .._memory import naming_memory
from .._validate import check_anndata, check_not_empty
from ..posterior.predictive import eta_of_pairs
from ..posterior.store.lookup import entry
from ._check_calibration import calibrate
from ._check_words import (
    CLOSE,
    MOST_LEFTOVER,
    how_it_ended,
    on_calibration,
    on_convergence,
    on_leftover,
)
from ._fit import fit
from ._open import open_fit, open_values
from ._tool import tool

if TYPE_CHECKING:
    from anndata import AnnData

    from ..data import CellMatrix
    from ..posterior import StoredFit

PAIRS = 20_000
# key of a fit that is repeated; no covariate is called like its fields
AGAIN = "scvi_lfm_again"


@dataclass(frozen=True)
class CheckReport:
    """What :func:`scvi_lfm.tl.check` found.

    Attributes
    ----------
    summary
        Plain sentences: whether fit and predictive can be trusted, and where not.
    calibration
        A row for each stratum: `by` (`"all"`, `"expected"` or `"depth"`), `stratum`, `n` entries, `coverage` of 90 %
        intervals, `ks` (Kolmogorov-Smirnov distance of the transforms from a uniform) and `ok`.
    histogram
        Share of transforms in each of 20 equal bins, a row for each stratum of `calibration`, (strata, 20).
    convergence
        A row for each fit, the checked one first: `fit`, `seed`, `batch_size`, `elbo` per entry, `gap` (what it lies
        below the best, as a share of what factors gain) and `eta_difference` (root mean square difference of eta
        from the checked fit, in posterior standard deviations).
    leftover
        Largest eigenvalue of the correlations between residuals of the 1,000 most abundant genes, over what noise
        alone gives: well above 1, cells share structure that the fit has not seen.
    trusted
        Whether every part passed.
    """

    summary: str
    calibration: pd.DataFrame
    histogram: np.ndarray
    convergence: pd.DataFrame
    leftover: float
    trusted: bool

    def __str__(self) -> str:
        return self.summary


@tool
def check(
    adata: AnnData,
    *,
    layer: str | None = None,
    refit: bool = True,
    device: str = "auto",
    rng: int | np.random.Generator = 0,
    key: str = "lfm",
) -> CheckReport:
    r"""Check convergence and calibration of a fit.

    Calibration: every entry is predicted as if neither its cell nor its gene had seen it, and

    .. math:: \mathrm{pit}_{ij} = \Pr(Y < y_{ij}) + \mathrm{uniform}_{ij} \Pr(Y = y_{ij})

    should be uniform between 0 and 1. A 90 % interval then holds 90 % of the values. That is asked overall, by expected
    value and by depth of the cell: pooled over all entries of counts, even a model without factors passes, because
    almost all are zeros. Values far out in the tails are few and say little; variational intervals are too narrow
    there. Dispersions can make up for missing factors, so residuals are also asked whether they go together between
    genes.

    Convergence: the fit is repeated with another seed and with batches of half the size, and the three are compared.
    A fit stops by its own estimate of what is missing, which cannot see gains that come slowly; where another fit ends
    higher by more than that, the comparison is the figure to go by, and the summary says so.

    Parameters
    ----------
    adata
        Annotated data with a fit (:func:`scvi_lfm.tl.fit`).
    layer
        Layer to read; None means the one that the fit read.
    refit
        Repeat the fit, at its price each time. False leaves out what needs it.
    device
        As in :func:`scvi_lfm.tl.fit`.
    rng
        Seed or generator, for the randomised transforms and the other seed.
    key
        Stem under which the fit is stored.

    Returns
    -------
    A :class:`~scvi_lfm.tl.CheckReport`: print it, or draw it with :func:`scvi_lfm.pl.calibration`. Nothing is written
    into `adata`.

    Raises
    ------
    KeyError
        There is no such fit or layer.
    TypeError, ValueError
        An argument or the data cannot be used, the values are of another kind than those that the fit read, or the fit
        is one by `likelihood="student_t"`, which has no leave-one-out predictive in closed form.

    Notes
    -----
    Calibration reads the values once, besides the reading that checks them; each refit reads them as a fit does.

    References
    ----------
    Brockwell (2007), Universal residuals: a multivariate transformation, Stat Probab Lett 77:1473.

    Examples
    --------
    >>> import scvi_lfm as lfm
    >>> adata = lfm.datasets.simulate(n_cells=400, n_genes=100, n_factors=3)
    >>> lfm.tl.fit(adata, n_factors=3, progress=False)
    >>> report = lfm.tl.check(adata)
    >>> report.trusted
    True
    """
    check_anndata(adata)
    check_not_empty(adata)
    if not isinstance(refit, bool | np.bool_):
        msg = f"`refit` must be True or False, found {refit!r}."
        raise TypeError(msg)
    seed = int(resolve_rng(rng).integers(2**31))
    stored = open_fit(adata, key, device, closed_form_for="check")
    matrix, where = open_values(adata, stored, layer).matrix, stored.device
    calibration, histogram, leftover = calibrate(matrix, stored, where, seed)
    convergence = _convergence(adata, matrix, stored, key, seed, refit=bool(refit))
    words = [
        *on_calibration(calibration),
        *on_leftover(leftover),
        *on_convergence(convergence, how_it_ended(adata.uns[key], key), stored.arguments.tol),
    ]
    trusted = bool(calibration["ok"].all()) and bool((convergence["eta_difference"] <= CLOSE).all())
    trusted &= leftover <= MOST_LEFTOVER
    return CheckReport(" ".join(words), calibration, histogram, convergence, leftover, trusted)


@naming_memory("check the fit")
def _convergence(
    adata: AnnData, matrix: CellMatrix, stored: StoredFit, key: str, seed: int, *, refit: bool
) -> pd.DataFrame:
    given, trace = stored.arguments, entry(adata.uns[key], ELBO, key)
    rank0, size = float(entry(trace, "rank0", key)), cast("int", given.batch_size)
    rows = [_row("this one", given.rng, size, float(entry(trace, "value", key)[-1]), 0.0)]
    if refit and given.engine == "natural_gradient":
        n = len(stored.posterior.cell_mean)
        # twice the batches, where each still holds as many cells as there are factors
        half = -(-n // max(1, min(2 * -(-n // size), n // max(int(given.n_factors), 2))))
        for name, other, cells in (("other seed", seed, size), ("half the batch", seed, half)):
            again = _fit_again(adata.obs, matrix, stored, other, cells)
            value = float(again.uns[AGAIN][ELBO]["value"][-1])
            rows.append(_row(name, other, cells, value, _difference(stored, open_fit(again, AGAIN), seed)))
    table = pd.DataFrame(rows)
    best = table["elbo"].max()
    gained = best - rank0
    table["gap"] = (best - table["elbo"]) / gained if gained > 0 and len(table) > 1 else np.nan
    return table[["fit", "seed", "batch_size", "elbo", "gap", "eta_difference"]]


def _row(name: str, seed: object, batch_size: int, value: float, difference: float) -> dict[str, Any]:
    return {"fit": name, "seed": seed, "batch_size": batch_size, "elbo": value, "eta_difference": difference}


def _fit_again(obs: pd.DataFrame, matrix: CellMatrix, stored: StoredFit, seed: int, batch_size: int) -> AnnData:
    """The fit of `params`, of the values alone that it had, but for the seed and the size of batches."""
    import anndata

    pattern, noise = matrix.observed, stored.posterior.noise
    by_rate = stored.posterior.likelihood.has_rate
    given = replace(
        stored.arguments,
        layer=None,
        mask_var=None,
        normalize=None,
        held_out=None if pattern is None or pattern.only else pattern.pattern.astype(bool),
        size_factors=noise.offset(slice(None)).exp().cpu().numpy() if by_rate else None,
        batch_size=min(batch_size, matrix.shape[0]),
        device=str(stored.device),
        rng=seed,
        progress=False,
        key_added=AGAIN,
    )
    again = anndata.AnnData(matrix.stored(), obs=obs[given.covariates or []])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what there was to say was said by the fit itself
        fit(again, **given.named())
    return again


def _difference(stored: StoredFit, other: StoredFit, seed: int) -> float:
    """Root mean square difference of eta over some entries, in posterior standard deviations."""
    q, again = stored.posterior, other.posterior
    rng = np.random.default_rng(seed)
    cells = torch.from_numpy(rng.integers(len(q.cell_mean), size=PAIRS))
    genes = torch.from_numpy(rng.integers(len(q.gene_mean), size=PAIRS))
    device = q.cell_mean.device
    mine, theirs = eta_of_pairs(q, cells.to(device), genes.to(device)), eta_of_pairs(again, cells, genes)
    difference = mine.mean.cpu() - theirs.mean + (stored.level - other.level)
    return float((difference.square() / mine.var.cpu()).mean().sqrt())
