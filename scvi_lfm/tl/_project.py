"""`tl.project`: new cells in the embedding of a reference, without a refit."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from .._calls import warn_user
from .._keys import HELD_OUT, PARAMS
from .._validate import check_anndata, check_not_empty, check_unique, itself_or_copy
from ..inference import place_cells
from ..posterior import write_fit
from ..posterior.store.covariates import known_of_cells, n_known
from ..posterior.store.schema import fit_places, record_for_new_cells
from ._fit_observed import check_cov_bytes
from ._open import open_fit, open_values
from ._overwriting import check_free, note_written
from ._size_factors import new_size_factors
from ._tool import tool

if TYPE_CHECKING:
    from anndata import AnnData


@tool
def project(
    adata: AnnData,
    reference: AnnData,
    *,
    layer: str | None = None,
    size_factors: np.ndarray | str | None = None,
    device: str = "auto",
    key: str = "lfm",
    key_added: str = "lfm",
    copy: bool = False,
) -> AnnData | None:
    r"""Place new cells in the embedding of a reference.

    Each cell gets its exact posterior given the stored genes and prior of the reference,

    .. math::

        S^{-1} = P^{-1} + \sum_j w_j E[v_j v_j'], \qquad
        (a_i, A_i) = S \left( P^{-1} \alpha_0 + \sum_j w_j \left( (y_{ij} - \mu) v_j - E[b_j v_j] \right) \right)

    with :math:`(\alpha_0, P)` the prior of (a, A) in the stored gauge. For counts this is one step, with the Fisher
    weights of the entries, and steps are made until no cell has anything to gain. The genes of the reference come
    along, so every tool works on the result. Batches are not corrected, unless they are covariates of the fit:
    `adata.obs` must then have the same columns, with no level that the fit did not see.

    After a fit with `observed="stored"`, only stored entries of the new rows are data: a handful of ratings is enough.
    Entries that the reference held out are no matter here.

    Parameters
    ----------
    adata
        New cells: counts for a reference fitted to counts, else normalised as the reference was. Where the fit did that
        itself (`normalize`), new cells are counts as well, and their totals are over all genes in `adata`, as when they
        are normalised by themselves. Genes are matched by name; those of the reference that are absent are taken as
        unobserved, which warns.
    reference
        Annotated data with a fit (:func:`scvi_lfm.tl.fit`).
    layer
        Layer of `adata` to read; None means the one that the fit read.
    size_factors
        For counts: size factors of the new cells, on the scale of the reference's, as an array (n,) or the name of a
        column of `obs`. None takes their total counts over the mean total of the reference's cells, or the column that
        the fit took; it must be given where the fit was given an array.
    device
        As in :func:`scvi_lfm.tl.fit`.
    key
        Stem under which the reference's fit is stored.
    key_added
        Stem under which the result is stored in `adata`. What is there already must be an earlier projection.
    copy
        Return a copy instead of writing into `adata`.

    Returns
    -------
    None, or the copy if `copy`. The fields of :func:`scvi_lfm.tl.fit` are written, for `key_added="lfm"`:

    `.obsm['X_lfm']`, `.obsm['X_lfm_sd']` : (n, r)
        Mean and standard deviation of A for the new cells.
    `.obs['lfm_a']`, `.obs['lfm_a_sd']` : (n,)
        Mean and standard deviation of their activity a, relative to the reference's average.
    `.varm['lfm']`, `.varm['lfm_sd']` : (m, r)
        Those of the reference; NaN for genes that it did not fit.
    `.var['lfm_b']`, `.var['lfm_b_sd']`, `.var['lfm_sigma']` or `.var['lfm_theta']` : (m,)
        Those of the reference; NaN for genes that it did not fit.
    `.varm['lfm_beta']`, `.varm['lfm_beta_sd']` : (m, p)
        Where the reference was fitted with covariates: its coefficients.
    `.obs['lfm_sigma']` : (n,)
        Where the reference was fitted with `noise="cell_gene"`: noise of the new cells.
    `.obs['lfm_total']` : (n,)
        Where the reference was fitted with `normalize`: totals of the new cells.
    `.obs['lfm_size_factor']`, `.obsm['lfm_cov']`, `.varm['lfm_cov']` : (n,), (n, (r+1)(r+2)/2), (m, (r+1)(r+2)/2)
        Counts: size factors and covariances of the new cells, and the reference's covariances of genes.
    `.uns['lfm']` : dict
        That of the reference; for the Normal with `cell_cov` (or `cell_basis` and `cell_eig`) of the new cells.
    `.uns['lfm_written']` : dict
        Which tool wrote which field, by container and name.

    Raises
    ------
    KeyError
        There is no such fit or layer, or no column of `obs` for a covariate.
    TypeError, ValueError
        The values or covariates cannot be used, the values are of another kind than those that the fit read, no gene is
        shared, or the fit is one by `likelihood="student_t"`, which has no step of cells in closed form. `adata` is
        then as it was.

    Examples
    --------
    >>> import scvi_lfm as lfm
    >>> adata = lfm.datasets.simulate(n_cells=200, n_genes=50, n_factors=3)
    >>> reference, new = adata[:150].copy(), adata[150:].copy()
    >>> lfm.tl.fit(reference, n_factors=3, progress=False)
    >>> lfm.tl.project(new, reference)
    >>> new.obsm["X_lfm"].shape
    (50, 3)
    """
    check_anndata(adata)
    check_anndata(reference, "reference")
    check_not_empty(adata)
    check_free(adata, "project", key_added, fit_places, copy=copy)
    stored = open_fit(reference, key, device, closed_form_for="project", cells=False)
    known = reference.var_names[stored.fitted]
    check_unique(known, "var")
    positions = known.get_indexer(adata.var_names)
    shared = positions >= 0
    _check_overlap(int(shared.sum()), len(known))
    whole, given = stored.posterior, stored.arguments
    kept = torch.as_tensor(positions[shared], device=stored.device)
    matrix = open_values(adata, stored, layer, new=(shared, kept)).matrix
    if n_known(reference.uns[key]):
        matrix = replace(matrix, covariates=known_of_cells(adata, reference.uns[key]))
    if given.observed == "stored" or (whole.gene_cov.by_row and not whole.likelihood.has_rate):
        check_cov_bytes(len(stored.active) + whole.n_known, adata.n_obs, "After such a fit")
    family = given.family
    if whole.likelihood.has_rate:
        size = new_size_factors(adata, size_factors, matrix, stored, reference.uns[key], kept)
        whole = whole.with_log_size(torch.as_tensor(np.log(size), device=stored.device))
    elif size_factors is not None:
        msg = (
            f"`size_factors` belong to count likelihoods, and the reference was fitted with {whole.likelihood.name!r}."
        )
        raise ValueError(msg)
    else:
        family = str(given.guide or family)
    if whole.likelihood.has_levels:
        whole = whole.with_log_size(torch.zeros(adata.n_obs, dtype=torch.float64, device=stored.device))
    q = place_cells(matrix, whole.at_genes(kept), family, all_genes=len(kept) == len(known))
    adata = itself_or_copy(adata, copy=copy)
    record = record_for_new_cells(reference.uns[key])
    record[PARAMS].pop(HELD_OUT, None)  # of the reference's cells
    totals = None if matrix.normalised is None else matrix.normalised.totals
    write_fit(adata, key_added, q, n_factors=len(stored.active), fitted=shared, record=record, totals=totals)
    note_written(adata, "project", fit_places(key_added))
    return adata if copy else None


def _check_overlap(n_shared: int, n_known: int) -> None:
    if n_shared == 0:
        msg = "No gene of the reference's fit is in `adata`: check that var_names of both are of one kind."
        raise ValueError(msg)
    if n_shared < n_known:
        msg = f"{n_known - n_shared} of {n_known} fitted genes are absent from `adata` and taken as unobserved."
        warn_user(msg)
