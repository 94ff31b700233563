"""`lfm.plan`: what a fit would read, hold and take, before it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._fit_arguments import FitArguments
from .._validate import check_anndata
from ..posterior.store import fit_places
from ._overwriting import check_free, obs_places
from ._plan_making import make_plan
from ._plan_record import Plan
from ._tool import tool

__all__ = ["Plan", "plan"]

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from os import PathLike

    import numpy as np
    import scipy.sparse as sp
    from anndata import AnnData


@tool
def plan(
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
) -> Plan:
    """What :func:`scvi_lfm.tl.fit` would read, hold in memory and take, before it runs.

    All arguments are those of the fit, and are checked as the fit checks them. About 4,096 cells are read, from all
    over the data, and some of them are fitted for one epoch to take the time; nothing is stored. The fit itself refuses
    what cannot fit into the memory that is left, and does not need a plan.

    Parameters
    ----------
    adata
        Annotated data, as :func:`scvi_lfm.tl.fit` takes them; nothing in it is altered.
    n_factors, layer, normalize, likelihood, noise, observed, held_out, covariates, size_factors, mask_var
        See :func:`scvi_lfm.tl.fit`.
    family, engine, guide, learning_rate, prior_scales, batch_size, max_epochs, tol, device, checkpoint, rng
        See :func:`scvi_lfm.tl.fit`.
    progress, key_added, copy
        See :func:`scvi_lfm.tl.fit`.

    Returns
    -------
    The plan, a record that prints as a table and that notebooks show as one.

    Raises
    ------
    TypeError, ValueError, KeyError
        An argument or, of the cells that are read, the data cannot be used.
    OSError
        The file of the values cannot be read.

    Notes
    -----
    Memory is what the process takes at its peak beyond what it held before the call, and follows from sizes alone.
    Time is that of the epochs which data usually need, and so a guess where these need more.

    Examples
    --------
    >>> import scvi_lfm as lfm
    >>> adata = lfm.datasets.simulate(n_cells=200, n_genes=50, n_factors=3)
    >>> plan = lfm.plan(adata, n_factors=3)
    >>> plan.likelihood, plan.batch_size
    ('normal', 200)
    """
    given = FitArguments.of(locals())
    check_anndata(adata)
    check_free(adata, "fit", key_added, fit_places, reads=obs_places(covariates), copy=copy)
    return make_plan(adata, given)
