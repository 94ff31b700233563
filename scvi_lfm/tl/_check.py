"""`tl.check`: whether a fit has converged, and whether its predictions can be trusted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .._validate import check_anndata, check_not_empty, resolve_rng
from ._check_calibration import calibrate
from ._check_convergence import compare_fits
from ._check_words import (
    CLOSE,
    MOST_LEFTOVER,
    how_it_ended,
    on_calibration,
    on_convergence,
    on_leftover,
)
from ._open import open_fit, open_values
from ._tool import tool

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData


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
        A row for each fit, the checked one and the other: `fit`, `seed`, `batch_size`, `elbo` per entry, `gap` (what
        it lies below the best, as a share of what factors gain) and `eta_difference` (root mean square difference of
        eta from the checked fit, in posterior standard deviations).
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

    Convergence: the fit is repeated from another seed, for counts with batches of half the size and for the Normal
    with a smaller tolerance, in at most a quarter more epochs, and the two are compared. A fit stops by its own
    estimate of what is missing, which cannot see gains that come slowly; where the other ends higher by more than that,
    the comparison is the figure to go by, and the summary says so.

    Parameters
    ----------
    adata
        Annotated data with a fit (:func:`scvi_lfm.tl.fit`).
    layer
        Layer to read; None means the one that the fit read.
    refit
        Repeat the fit, at its price. False leaves out what needs it.
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
    Where there are many cells, calibration looks at some of them at random that stand for all: as many as have a
    million entries, but at least 500, for the transforms (`n` of the report counts their entries), and at most 4,096
    for what is left over. The bounds that they are held to are far wider than such a sample is uncertain. The refit
    reads the values where they lie, as a fit does.

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
    convergence = compare_fits(adata, matrix, stored, seed, refit=bool(refit))
    words = [
        *on_calibration(calibration),
        *on_leftover(leftover),
        *on_convergence(convergence, how_it_ended(adata.uns[key], key), stored.arguments.tol),
    ]
    trusted = bool(calibration["ok"].all()) and bool((convergence["eta_difference"] <= CLOSE).all())
    trusted &= leftover <= MOST_LEFTOVER
    return CheckReport(" ".join(words), calibration, histogram, convergence, leftover, trusted)
