"""`tl.fit`: from counts in an AnnData to a posterior in it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .._context import resolve_device, resolve_rng
from .._settings import logger, settings
from .._validate import check_anndata, check_choice, check_count, check_key, check_positive, resolve_mask
from ..data import read_matrix
from ..inference import FitOptions, FitResult, fit_natural_gradient
from ..model.likelihoods import COUNTS
from ..model.priors import check_prior_scales
from ..posterior import write_fit
from ._fit_arguments import (
    check_count_values,
    check_engine_options,
    check_guide_of_normal,
    check_options_of_likelihood,
    check_shape,
    check_values,
    check_variation,
    choose_batch_size,
    choose_likelihood,
    choose_max_epochs,
    warn_about_empty_genes,
)
from ._fit_result import check_finite, record_of, scale_of_sizes, warn_not_converged
from ._size_factors import resolve_size_factors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from anndata import AnnData

    from ..data import CellMatrix

LIKELIHOODS = ("auto", "normal", *COUNTS)
NOISES = ("shared", "gene")
FAMILIES = ("row_block", "mean_field")
ENGINES = ("natural_gradient", "pyro")
GUIDES = (*FAMILIES, "low_rank", "flow")


def fit(
    adata: AnnData,
    n_factors: int = 30,
    *,
    layer: str | None = None,
    likelihood: str = "auto",
    noise: str = "shared",
    size_factors: np.ndarray | str | None = None,
    mask_var: np.ndarray | str | None = None,
    family: str = "row_block",
    engine: str = "natural_gradient",
    guide: str | Callable[..., Any] | None = None,
    learning_rate: float | None = None,
    prior_scales: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
    max_epochs: int | None = None,
    tol: float = 0.005,
    device: str = "auto",
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

    with Normal priors on all latents and their scales learned. Run it on raw counts or, which is faster, on
    log-normalised values (:func:`scanpy.pp.normalize_total`, then :func:`scanpy.pp.log1p`), and on all genes: there is
    no need to select or to scale any.

    Parameters
    ----------
    adata
        Annotated data, cells by genes. Sparse matrices stay sparse; nothing in it is altered.
    n_factors
        Number of factors r, at most the number of cells and of genes. Those that the data do not need are switched
        off.
    layer
        Layer to read; None reads `X`.
    likelihood
        `"normal"`: log-normalised values. `"negative_binomial"`: counts with mean :math:`\lambda` and variance
        :math:`\lambda + \lambda^2 / \theta_j`, theta learned for each gene. `"poisson"`: counts with variance
        :math:`\lambda`. `"bernoulli"`: zeros and ones, :math:`P(y = 1) = 1 - e^{-\lambda}`. `"auto"`:
        `"negative_binomial"` if all values are whole and none is negative, else `"normal"`.
    noise
        For the Normal. `"shared"`: one sigma for all genes, for the better embedding. `"gene"`: one for each.
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
        Standard deviations to hold fixed, from `"a"`, `"A"`, `"b"`, `"B"` and (Normal) `"sigma"`; `"A"` and `"B"` take
        one number or r. Whatever is not named is learned, except `"A"`, which is 1.
    batch_size
        Cells in a minibatch; None takes 512 for counts, and 2,048 or all of at most 4,096 cells for the Normal.
    max_epochs
        Passes over the cells at the most; None takes 100 (coordinate ascent), 20 (minibatches), or as many as make
        6,000 steps (Pyro).
    tol
        Stop when the share of the factors' gain in ELBO that is estimated to be missing falls below `tol`.
    device
        `"auto"` (`settings.device`), `"cpu"`, or a CUDA device such as `"cuda"`.
    rng
        Seed, or a generator to draw one from. The same seed gives the same bits on the CPU.
    progress
        Show a progress bar.
    key_added
        Stem of the keys below.
    copy
        Return a copy instead of writing into `adata`.

    Returns
    -------
    None, or the copy if `copy`. These fields are written, for `key_added="lfm"`:

    `.obsm['X_lfm']`, `.obsm['X_lfm_sd']` : (n, r)
        Mean and standard deviation of A: orthogonal columns with decreasing length, as principal components have.
        Normal: the standard deviation is the same for every cell.
    `.obs['lfm_a']`, `.obs['lfm_a_sd']` : (n,)
        Mean and standard deviation of the cell's activity a; its mean over cells is zero.
    `.varm['lfm']`, `.varm['lfm_sd']` : (m, r)
        Mean and standard deviation of B; the columns of B are orthonormal.
    `.var['lfm_b']`, `.var['lfm_b_sd']` : (m,)
        Mean and standard deviation of the gene's abundance b; its mean over genes is zero.
    `.var['lfm_sigma']` : (m,)
        Normal: noise of each gene for predicting and scoring, the root mean expected squared residual after the fit.
        All standard deviations of genes use it.
    `.var['lfm_theta']` : (m,)
        Negative binomial: dispersion of each gene.
    `.obs['lfm_size_factor']` : (n,)
        Counts: size factors.
    `.obsm['lfm_cov']`, `.varm['lfm_cov']` : (n, (r+1)(r+2)/2), (m, (r+1)(r+2)/2)
        Counts: lower triangles of the covariance of each (a, A) and (b, B). Those of cells are left out where they
        would pass `settings.max_cov_bytes`, and are then computed anew when they are needed.
    `.uns['lfm']` : dict
        `params` (the arguments), `mu`, `variance_ratio` (r,), `elbo` (`epoch`, `value` per entry, and `rank0`, its
        value without factors), `converged`, `seconds`, `version`, and in float64 the prior in the stored gauge
        (`prior_cell_mean`, `prior_cell_cov`, `prior_gene_mean`, `prior_gene_cov`). Normal: also `sigma` (the fit's
        noise) and the covariances (`cell_cov`, `gene_basis`, `gene_eig`). Counts: `total_counts` of a cell with size
        factor one, unless size factors were given.

    Factors that are off are zero in all of them.

    Raises
    ------
    TypeError, ValueError, KeyError
        An argument or the data cannot be used. `adata` is then as it was.
    FloatingPointError
        The values differ by too many orders of magnitude to be fitted.

    Notes
    -----
    Variational posteriors are too narrow in the tails, and q(mu) far too narrow, so no uncertainty of mu is reported.

    With far more factors than the data hold, one shared sigma lets the surplus fit the noise of noisy genes: where
    genes differ fourfold in noise and 30 factors are fitted to 4, 90 % intervals of eta cover 96 % for quiet genes and
    81 % for noisy ones (90 % and 90 % with 4 factors). Where intervals matter, use `noise="gene"`.

    References
    ----------
    Hoffman et al. (2013), Stochastic variational inference, JMLR 14:1303, section 2.
    Blei et al. (2017), Variational inference: a review for statisticians, JASA 112:859, section 2.
    Khan & Lin (2017), Conjugate-computation variational inference, AISTATS 54:878, section 3 (counts).

    Examples
    --------
    >>> import scvi_lfm as lfm
    >>> adata = lfm.datasets.simulate(n_cells=200, n_genes=50, n_factors=3)
    >>> lfm.tl.fit(adata, n_factors=3, progress=False)
    >>> adata.obsm["X_lfm"].shape
    (200, 3)
    """
    started = time.perf_counter()
    check_anndata(adata)
    check_key("key_added", key_added)
    for name, value, choices in (
        ("likelihood", likelihood, LIKELIHOODS),
        ("noise", noise, NOISES),
        ("family", family, FAMILIES),
        ("engine", engine, ENGINES),
    ):
        check_choice(name, value, choices)
    check_engine_options(engine, guide, learning_rate, GUIDES)
    scales = check_prior_scales(prior_scales, check_count("n_factors", n_factors))
    fitted = np.ones(adata.n_vars, dtype=bool) if mask_var is None else resolve_mask("mask_var", mask_var, adata.var)
    check_shape(n_factors, adata.n_obs, int(fitted.sum()))
    matrix = read_matrix(adata, layer, genes=fitted)
    likelihood = choose_likelihood(likelihood, matrix)
    check_options_of_likelihood(likelihood, noise, scales, size_factors)
    if likelihood == "normal":
        check_guide_of_normal(guide, FAMILIES)
    log_size = None
    if likelihood == "normal":
        check_values(matrix, layer)
    else:
        check_count_values(matrix, layer, likelihood, adata.obs_names, adata.var_names[fitted])
        check_variation(matrix, layer)
        warn_about_empty_genes(matrix, layer)
        log_size = np.log(resolve_size_factors(adata, size_factors, matrix))
    size = choose_batch_size(batch_size, adata.n_obs, n_factors, counts=likelihood != "normal")
    options = FitOptions(
        n_factors=int(n_factors),
        likelihood=likelihood,
        noise=noise,
        family=family,
        prior_scales=scales,
        batch_size=size,
        max_epochs=choose_max_epochs(max_epochs, engine, -(-adata.n_obs // size)),
        tol=check_positive("tol", tol),
        device=resolve_device(device),
        dtype=torch.float32,
        seed=int(resolve_rng(rng).integers(2**31)),
        progress=progress and settings.progress,
        guide=guide or family,
        learning_rate=0.02 if learning_rate is None else learning_rate,
        log_size=log_size,
    )
    logger.info("likelihood %r, %s cells x %s genes, on %s", likelihood, *matrix.shape, options.device)

    result = _run(engine, matrix, options)
    check_finite(result.posterior, adata.obs_names, adata.var_names[fitted])
    if not result.converged:
        warn_not_converged(result, options)
    adata = adata.copy() if copy else adata
    arguments = {
        "n_factors": int(n_factors),
        "layer": layer,
        "likelihood": likelihood,
        "noise": noise if likelihood == "normal" else None,
        "size_factors": size_factors if size_factors is None or isinstance(size_factors, str) else "array",
        "mask_var": mask_var if mask_var is None or isinstance(mask_var, str) else "array",
        "family": family,
        "engine": engine,
        "guide": None if engine != "pyro" else "callable" if callable(options.guide) else options.guide,
        "learning_rate": options.learning_rate if engine == "pyro" else None,
        "prior_scales": {name: np.array(value, dtype=float)[()] for name, value in scales.items()} or None,
        "batch_size": size,
        "max_epochs": options.max_epochs,
        "tol": float(tol),
        "device": str(options.device),
        "rng": None if isinstance(rng, np.random.Generator) else int(rng),
    }
    seconds = time.perf_counter() - started
    write_fit(
        adata,
        key_added,
        result.posterior,
        n_factors=int(n_factors),
        fitted=fitted,
        record=record_of(arguments, result, int(n_factors), seconds) | scale_of_sizes(matrix, likelihood, size_factors),
    )
    logger.info("fitted in %.1f s", seconds)
    return adata if copy else None


def _run(engine: str, matrix: CellMatrix, options: FitOptions) -> FitResult:
    try:
        if engine == "pyro":
            from ..inference.pyro_engine import fit_pyro

            return fit_pyro(matrix, options)
        return fit_natural_gradient(matrix, options)
    except torch.linalg.LinAlgError as error:
        msg = (
            "The fit broke down numerically: values differ from each other, or from their mean, by too many orders of "
            "magnitude, or cells or genes repeat each other exactly. Look for such values, or rescale the data. "
            "Nothing was stored."
        )
        raise FloatingPointError(msg) from error
