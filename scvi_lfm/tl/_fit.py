"""`tl.fit`: from counts in an AnnData to a posterior in it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch

from .._fit_arguments import FitArguments
from .._memory import naming_memory
from .._settings import logger
from .._validate import check_anndata, itself_or_copy
from ..data import UnfitValuesError
from ..inference import fit_natural_gradient
from ..posterior.store import fit_places, write_fit
from ._fit_memory import check_memory, size_of
from ._fit_prepare import check_what_was_read, prepare_fit
from ._fit_result import broken_down, check_storable, n_factors_of, record_of, warn_at_bound, warn_not_converged
from ._overwriting import check_free, note_written, obs_places
from ._tool import tool

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from os import PathLike

    import numpy as np
    import scipy.sparse as sp
    from anndata import AnnData

    from ..inference import FitResult
    from ._fit_prepare import PreparedFit


@tool
def fit(
    adata: AnnData,
    n_factors: int | str = 30,
    *,
    layer: str | None = None,
    normalize: float | None = None,
    likelihood: str = "auto",
    noise: str = "shared",
    observed: str = "all",
    held_out: str | sp.csr_array | None = None,
    covariates: Sequence[str] | str | None = None,
    size_factors: np.ndarray | str | None = None,
    mask_var: np.ndarray | str | None = None,
    family: str = "row_block",
    engine: str = "natural_gradient",
    guide: str | Callable[..., Any] | None = None,
    learning_rate: float | None = None,
    prior_scales: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
    max_epochs: float | None = None,
    tol: float = 0.005,
    device: str = "auto",
    checkpoint: str | PathLike[str] | None = None,
    rng: int | np.random.Generator = 0,
    progress: bool = True,
    key_added: str = "lfm",
    copy: bool = False,
) -> AnnData | None:
    r"""Fit the latent factor model by variational inference.

    Every value is data, zeros included:

    .. math::

        \eta_{ij} = \mu + a_i + b_j + A_i \cdot B_j, \qquad y_{ij} \sim \mathrm{Normal}(\eta_{ij}, \sigma_j^2)
        \quad \text{or, for counts,} \quad y_{ij} \sim p(\lambda_{ij}), \; \lambda_{ij} = s_i e^{\eta_{ij}}

    with Normal priors on all latents and their scales learned. Run it on raw counts, as they are or, which is faster,
    log-normalised (`normalize=1e4`), and on all genes: there is no need to select or to scale any.

    Parameters
    ----------
    adata
        Annotated data, cells by genes: in memory, backed (`anndata.read_h5ad(path, backed="r")`), read lazily
        (`anndata.experimental.read_lazy`) or holding dask arrays. Results are the same to the bit. Sparse matrices stay
        sparse; nothing in it is altered.
    n_factors
        Number of factors r, at most the number of cells and of genes. Those that the data do not need are switched
        off. With 0 the margins alone are fitted (not by Pyro). `"auto"` chooses r, which may be 0: from a fit with 50
        factors (30 for counts; at most half the genes, and half the cells of a minibatch) the weakest are dropped down
        to the r of highest ELBO, the fit goes on with these, and so on until none is dropped. With
        `engine="natural_gradient"` only, and without `prior_scales` of `"B"` or of single factors.
    layer
        Layer to read; None reads `X`.
    normalize
        None takes values as they are. A number takes them for counts and fits :math:`\log(1 + t y_{ij} / n_i)`, with t
        that number and :math:`n_i` the cell's total over all genes, also where `mask_var` selects some: what
        :func:`scanpy.pp.normalize_total` with `target_sum=t` and :func:`scanpy.pp.log1p` leave, made as cells are read,
        without a second matrix. For `likelihood="normal"`, which `"auto"` then means, and `"student_t"`. Every tool
        that reads values of this fit does the same.
    likelihood
        `"normal"`: log-normalised values. `"student_t"`: such values with outliers, noise of scale sigma with heavy
        tails, whose degrees of freedom are learned between 2.1 and 100; with `engine="pyro"` only.
        `"negative_binomial"`: counts with mean :math:`\lambda` and variance :math:`\lambda + \lambda^2 / \theta_j`,
        theta learned for each gene. `"poisson"`: counts with variance :math:`\lambda`. `"bernoulli"`: zeros and ones,
        :math:`P(y = 1) = 1 - e^{-\lambda}`. `"ordinal"`: at most 50 levels, as those of ratings, by a cumulative probit
        whose thresholds are learned. `"auto"`: `"negative_binomial"` if all values are whole and none is negative, else
        `"normal"`, which warns where values look unlogged or scaled to unit variance.
    noise
        For the Normal and the Student t. `"shared"`: one sigma for all genes, for the better embedding. `"gene"`: one
        for each. `"cell_gene"`: :math:`\sigma_i \sigma_j`, so that a shallow cell is less sure than a deep one; the
        geometric mean of :math:`\sigma_i` over the fitted cells is one.
    observed
        `"all"`: every entry is data, zeros included, except those of `held_out`. `"stored"`: of a sparse matrix, only
        the entries that it stores are, as in ratings; a stored zero is a value of zero, and `likelihood="auto"` is
        `"normal"`. Unless every entry is data, each cell and gene has a covariance of its own.
    held_out
        Entries to leave out of the fit and to predict: the name of a layer with a sparse boolean matrix, True where
        held out, or that matrix (n, m). With `observed="stored"`, entries that are not stored are none to hold out.
        Tools that read the values afterwards need the layer.
    covariates
        Columns of `obs` whose effect on each gene is to be told apart from the cells' own, such as the batch:
        :math:`b_j` becomes :math:`b_j + \zeta_i \cdot \beta_j`. Numbers are continuous, centred and divided by their
        standard deviation; a few whole ones counted from 0 or 1, as numbers of batches are, warn. Strings, categoricals
        and booleans are levels, each against the first, and centred; categories without a cell are left out. They need
        `engine="natural_gradient"` and one of the first two kinds of noise.
    size_factors
        For counts: size factors s, positive, as an array (n,) or the name of a column of `obs`. None takes total counts
        over their mean.
    mask_var
        Genes to fit: a boolean array (m,) or the name of a boolean column of `var`. None fits all. The others get NaN.
    family
        Variational family: `"row_block"` joins (a_i, A_i) of a cell and (b_j, B_j) of a gene in one Normal each;
        `"mean_field"` makes every latent independent.
    engine
        `"natural_gradient"`: closed-form steps. `"pyro"`: black-box stochastic gradients through Pyro, slower by
        orders of magnitude, for reference.
    guide
        Guide of the Pyro engine; None takes the one named by `family`. For counts also `"low_rank"` (covariances of
        rows are a diagonal plus rank 3), `"flow"` (one normalising flow bends the Normals of all cells, one those of
        all genes), or a Pyro program with the sites of `lfm.model.model`. It is called as
        `guide(y, n_cells=..., rows=...)`, with what `lfm.model.guide` takes under these names; its parameters, made by
        :func:`pyro.param`, live for this fit alone, and all of them move in every step, so that all cells should be
        one batch. Of a flow or such a program the means and covariances of rows are kept, those of 65,536 or 1,000
        draws.
    learning_rate
        Step size of the Pyro engine's optimiser; None takes 0.02.
    prior_scales
        Standard deviations to hold fixed, from `"a"`, `"A"`, `"b"`, `"B"` and (but for counts) `"sigma"`; `"A"` and
        `"B"` take one number or r. Whatever is not named is learned, except `"A"`, which is 1.
    batch_size
        Cells in a minibatch; None takes 512 for counts, and 2,048 or all of at most 4,096 cells for the Normal.
    max_epochs
        Readings of all cells at the most; None takes 100 (coordinate ascent), 20 (minibatches), or 6,000 steps (Pyro).
        A fraction ends an epoch after that share of its minibatches, at least one: with all cells in one, 0.5 is 1.
        The last step takes all cells all the same; Pyro has none, and cells that it did not see stay at their start.
    tol
        Stop when the share of the factors' gain in ELBO that is estimated to be missing falls below `tol`.
    device
        `"auto"` (`settings.device`), `"cpu"`, or a CUDA device such as `"cuda"`.
    checkpoint
        File that keeps the state of the fit, written anew every minute or more of work and at Ctrl-C, and never left
        half written. A fit that was stopped, by whatever, and is called again with the same data and arguments goes on
        from it and ends with the same bits. It stays when the fit is done: called again, the fit ends at once, or goes
        on if `max_epochs` is larger (not with `n_factors="auto"`). It is of one fit alone; other data or arguments are
        refused, and who wants to begin anew deletes it. With `engine="natural_gradient"` only.
    rng
        Seed, or a generator to draw one from. The same seed gives the same bits on the CPU.
    progress
        Say on standard error how far the fit is: elsewhere than on a terminal or in a notebook every half minute.
    key_added
        Stem of the keys below. What is there already must be an earlier fit, left by this function.
    copy
        Return a copy instead of writing into `adata`.

    Returns
    -------
    None, or the copy if `copy`. These fields are written, for `key_added="lfm"`:

    `.obsm['X_lfm']`, `.obsm['X_lfm_sd']` : (n, r)
        Mean and standard deviation of A: orthogonal columns with decreasing length, as principal components have.
        Normal: the standard deviations are those of every cell, except with `noise="cell_gene"` or entries not data.
    `.obs['lfm_a']`, `.obs['lfm_a_sd']` : (n,)
        Mean and standard deviation of the cell's activity a; its mean over cells is zero.
    `.varm['lfm']`, `.varm['lfm_sd']` : (m, r)
        Mean and standard deviation of B; the columns of B are orthonormal.
    `.var['lfm_b']`, `.var['lfm_b_sd']` : (m,)
        Mean and standard deviation of the gene's abundance b; its mean over genes is zero.
    `.var['lfm_sigma']` : (m,)
        Normal: noise of each gene for predicting and scoring, the root mean expected squared residual after the fit.
        All standard deviations of genes use it. Student t: the scale of the noise in the fit.
    `.obs['lfm_sigma']` : (n,)
        `noise="cell_gene"`: noise of each cell, by which that of the gene is multiplied.
    `.var['lfm_theta']` : (m,)
        Negative binomial: dispersion of each gene.
    `.obs['lfm_size_factor']` : (n,)
        Counts: size factors.
    `.obs['lfm_total']` : (n,)
        With `normalize`: the cell's total, by which tools normalise it when some of its genes are gone.
    `.obsm['lfm_cov']`, `.varm['lfm_cov']` : (n, (r+1)(r+2)/2), (m, (r+1)(r+2)/2)
        Counts, levels, and the Normal where not all entries are data: lower triangles of the covariance of each (a, A),
        (b, B). For counts, those of cells are left out where they would pass `settings.max_cov_bytes`, and are then
        computed anew when they are needed; where some entries are not data, and of levels, such a fit is refused.
    `.varm['lfm_beta']`, `.varm['lfm_beta_sd']` : (m, p)
        With `covariates`: mean and standard deviation of the coefficients beta, in the order of `covariates` below, per
        standard deviation of a continuous covariate or for a level against the reference. `lfm_b` is then the
        abundance at the average of the covariates, and A and a hold what they leave unexplained.
    `.uns['lfm']` : dict
        `params` (the arguments), `mu`, `variance_ratio` (r,), `elbo` (`epoch`, `value` per entry, and `rank0`, its
        value without factors), `converged`, `seconds`, `version`, and in float64 the prior in the stored gauge
        (`prior_cell_mean`, `prior_cell_cov`, `prior_gene_mean`, `prior_gene_cov`). Normal: also `sigma` (the fit's
        noise) and the covariances (`cell_cov`, or `cell_basis` and `cell_eig` under `noise="cell_gene"`; `gene_basis`,
        `gene_eig`; `by_row` instead where every row has its own). Student t: these and `df`, the degrees of freedom.
        Counts: `total_counts` of a cell with size factor one and `expected_counts`, what the prior of (a, A) expects of
        it, unless size factors were given. With covariates, `covariates`: a data frame with a row for each coefficient
        (`column`, `kind`, `level`, `reference`, `mean`, `sd`), and the prior and `gene_basis`, `gene_eig` and
        `varm['lfm_cov']` have p more coordinates, behind the first. With `held_out`, `held_out`: `epoch`, `log_density`
        and `rmse` per entry held out after each epoch and at the end, and `stopped`, whether the log density fell twice
        in a row, which ends the fit. `values`, with which tools compare what they read: `whole` (share of whole numbers
        other than zero), `minimum`, `maximum`, `mean_total` of a cell, `expected_total` of counts, `log_base` of log1p
        values; with `normalize` also `read_whole`, `read_minimum`, `read_maximum` and `read_mean_total`, of all genes
        as they were read. `level`, where values share one (see Notes). Ordinal: `levels`, the lowest and thresholds.
    `.uns['lfm_written']` : dict
        Which tool wrote which field, by container and name.

    With `n_factors="auto"`, `params` hold the number chosen, and `max_factors`, the most that were tried; `rank` then
    holds what :func:`scvi_lfm.get.rank_df` shows. Factors that are off are zero in all of them.

    Raises
    ------
    TypeError, ValueError, KeyError
        An argument or the data cannot be used, or their dtype has lost the digits behind a level that they share.
        `adata` is then as it was. Values in a file that are to be normalised are checked by the readings of the fit:
        their errors and warnings come when it is done, the errors before anything is stored.
    OSError
        The file of the values cannot be read.
    FloatingPointError
        The values differ by too many orders of magnitude to be fitted.

    Notes
    -----
    Variational posteriors are too narrow in the tails, and q(mu) far too narrow, so no uncertainty of mu is reported.

    Where the mean of the values (not counts) lies beyond 10 of their standard deviations, or beyond one and 100 (the
    standard deviation of mu's prior), and at most 1 in 101 is zero, they are fitted less a level, the rounded mean: the
    mean of mu's prior is then the level instead of 0. `mu`, and what tools tell of values, are on the values' scale.

    With far more factors than the data hold, one shared sigma lets the surplus fit the noise of noisy genes: where
    genes differ fourfold in noise and 30 factors are fitted to 4, 90 % intervals of eta cover 96 % for quiet genes and
    81 % for noisy ones (90 % and 90 % with 4 factors). Where intervals matter, use `noise="gene"`.

    References
    ----------
    Hoffman et al. (2013), Stochastic variational inference, JMLR 14:1303, section 2.
    Blei et al. (2017), Variational inference: a review for statisticians, JASA 112:859, section 2.
    Lange et al. (1989), Robust statistical modeling using the t distribution, JASA 84:881 (Student t).
    Khan & Lin (2017), Conjugate-computation variational inference, AISTATS 54:878, section 3 (counts, levels).

    Examples
    --------
    >>> import scvi_lfm as lfm
    >>> adata = lfm.datasets.simulate(n_cells=200, n_genes=50, n_factors=3)
    >>> lfm.tl.fit(adata, n_factors=3, progress=False)
    >>> adata.obsm["X_lfm"].shape
    (200, 3)
    """
    given, started = FitArguments.of(locals()), time.perf_counter()
    check_anndata(adata)
    check_free(adata, "fit", key_added, fit_places, reads=obs_places(covariates), copy=copy)
    prepared = prepare_fit(adata, given)
    shape, options = prepared.matrix.shape, prepared.options
    check_memory(size_of(prepared), options.device)
    logger.info("likelihood %r, %s cells x %s genes, on %s", options.likelihood, *shape, options.device)
    result = _run(adata, prepared)
    prepared = check_what_was_read(adata, prepared)
    check_storable(result.posterior, adata.obs_names, adata.var_names[prepared.fitted])
    if not result.converged:
        warn_not_converged(result, options)
    if options.choose_rank:
        warn_at_bound(result, options)
    adata = itself_or_copy(adata, copy=copy)
    seconds = result.seconds_before + time.perf_counter() - started
    record, n_factors = record_of(prepared, result, seconds), n_factors_of(prepared, result)
    q, fitted, totals = result.posterior, prepared.fitted, prepared.totals
    write_fit(adata, key_added, q, n_factors=n_factors, fitted=fitted, record=record, totals=totals)
    note_written(adata, "fit", fit_places(key_added))
    logger.info("fitted in %.1f s", seconds)
    return adata if copy else None


@naming_memory("fit the model", "Pass a smaller batch_size or n_factors, or fewer genes (mask_var)")
def _run(adata: AnnData, prepared: PreparedFit) -> FitResult:
    try:
        if prepared.arguments.engine == "pyro":
            from ..inference.pyro import fit_pyro

            return fit_pyro(prepared.matrix, prepared.options)
        return fit_natural_gradient(prepared.matrix, prepared.options)
    except (torch.linalg.LinAlgError, UnfitValuesError) as error:
        raise broken_down(adata, check_what_was_read(adata, prepared)) from error
