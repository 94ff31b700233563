"""The arguments of a fit as they were given, and the choices that they have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..model import likelihoods

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    import scipy.sparse as sp

LIKELIHOODS = ("auto", *likelihoods.LIKELIHOODS)
NOISES = ("shared", "gene", "cell_gene")
FAMILIES = ("row_block", "mean_field")
ENGINES = ("natural_gradient", "pyro")
OBSERVED = ("all", "stored")
GUIDES = (*FAMILIES, "low_rank", "flow")
LEARNING_RATE = 0.02
AUTO = "auto"


@dataclass(frozen=True)
class FitArguments:
    """The arguments of :func:`scvi_lfm.tl.fit`, as they were given."""

    n_factors: int | str
    layer: str | None
    likelihood: str
    noise: str
    observed: str
    held_out: str | sp.csr_array | None
    covariates: Sequence[str] | str | None
    size_factors: np.ndarray | str | None
    mask_var: np.ndarray | str | None
    family: str
    engine: str
    guide: str | Callable[..., Any] | None
    learning_rate: float | None
    prior_scales: Mapping[str, Any] | None
    batch_size: int | None
    max_epochs: int | None
    tol: float
    device: str
    rng: int | np.random.Generator
    progress: bool
