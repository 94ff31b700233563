"""Prior scales (the kappas) and general Normal priors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from .._validate import check_positive

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

MU_SCALE = 100.0
# learned prior variances stay above this share of the noise variance, so that their inverses exist
FLOOR = 1e-12
NAMES = ("a", "A", "b", "B", "sigma")
_NONE = torch.zeros(0, dtype=torch.float64, device="cpu")


@dataclass(frozen=True)
class Gaussian:
    """A Normal distribution over one row of (a, A) or (b, B).

    With p covariates rows are (a, zeta, A) and (b, beta, B), and that of cells is the joint one of what is known and
    what is not; :meth:`given_known` is then the prior of (a, A).
    """

    mean: Tensor  # (k,)
    cov: Tensor  # (k, k)
    slope: Tensor | None = None  # (k, p): of the mean on the covariates
    independent: bool = False  # whether the covariance is known to be diagonal

    @classmethod
    def centred(cls, variances: Tensor) -> Gaussian:
        """Normal of independent coordinates with mean zero."""
        return cls(torch.zeros_like(variances), torch.diag(variances), independent=True)

    def given_known(self, n_known: int) -> Gaussian:
        """Normal of the first coordinate and those from 1 + p on, given the p between them."""
        if n_known == 0:
            return self
        known = slice(1, 1 + n_known)
        free = free_coordinates(len(self.mean), n_known, self.mean.device)
        slope = torch.linalg.solve(self.cov[known, known], self.cov[known][:, free]).T
        cov = self.cov[free][:, free] - slope @ self.cov[known][:, free]
        return Gaussian(self.mean[free] - slope @ self.mean[known], (cov + cov.T) / 2, slope)

    def means(self, known: Tensor) -> Tensor:
        """Means of rows with covariates (rows, p), (rows, k)."""
        return self.mean.expand(len(known), -1) if self.slope is None else self.mean + known @ self.slope.T


def free_coordinates(k: int, n_known: int, device: torch.device) -> Tensor:
    """Positions of (a, A) in a row (a, zeta, A) of k coordinates, p of them known."""
    return torch.cat([torch.zeros(1, dtype=torch.long, device=device), torch.arange(1 + n_known, k, device=device)])


def with_known(matrix: Tensor, n_known: int) -> Tensor:
    """A matrix of (a, A) as one of (a, zeta, A), with zeros for what is known."""
    k = matrix.shape[-1] + n_known
    free = free_coordinates(k, n_known, matrix.device)
    full = matrix.new_zeros(*matrix.shape[:-2], k, k)
    full[..., free[:, None], free] = matrix
    return full


@dataclass(frozen=True)
class PriorScales:
    """Standard deviations of the priors, as float64 tensors.

    `fixed` names those that the user gave; the others are learned at the maximum of the ELBO, except `A`, whose scale
    only trades with `B` and stays 1.
    """

    a: Tensor  # ()
    A: Tensor  # (r,)
    b: Tensor  # ()
    B: Tensor  # (r,)
    fixed: frozenset[str] = frozenset()
    beta: Tensor = _NONE  # (p,): of coefficients

    @property
    def cell_var(self) -> Tensor:
        """Prior variances of (a, A), (r+1,)."""
        return torch.cat([self.a[None], self.A]).square()

    @property
    def gene_var(self) -> Tensor:
        """Prior variances of (b, beta, B), (1+p+r,)."""
        return torch.cat([self.b[None], self.beta, self.B]).square()

    def learned_from(self, cell_activity: Tensor, gene_squares: Tensor, noise_var: Tensor) -> PriorScales:
        """Scales at the ELBO's maximum, given mean E[a^2] and mean E[(b, beta, B)^2]; no variance falls to nothing."""
        floor, p = FLOOR * noise_var, len(self.beta)
        return replace(
            self,
            a=self.a if "a" in self.fixed else cell_activity.clamp_min(floor).sqrt(),
            b=self.b if "b" in self.fixed else gene_squares[0].clamp_min(floor).sqrt(),
            B=self.B if "B" in self.fixed else gene_squares[1 + p :].clamp_min(floor).sqrt(),
            beta=gene_squares[1 : 1 + p].clamp_min(floor).sqrt(),
        )


def initial_scales(n_factors: int, given: Mapping[str, object], spread: Tensor, n_covariates: int = 0) -> PriorScales:
    """Starting scales: those of `given` fixed, A at 1 and the others at the spread of the data."""
    start = {"a": spread, "A": torch.ones_like(spread), "b": spread, "B": spread}
    start |= {
        name: torch.as_tensor(value, dtype=torch.float64, device=spread.device)
        for name, value in given.items()
        if name in start
    }
    return PriorScales(
        a=start["a"],
        A=_of_each(start["A"], n_factors),
        b=start["b"],
        B=_of_each(start["B"], n_factors),
        fixed=frozenset(given),
        beta=spread.expand(n_covariates),
    )


def _of_each(scale: Tensor, n_factors: int) -> Tensor:
    """One scale for each factor; of more or fewer factors than were asked for, the first one's."""
    return scale if scale.shape == (n_factors,) else scale.flatten()[:1].expand(n_factors)


def kl_of_mu(mean: Tensor, var: Tensor) -> Tensor:
    """KL of q(mu) from its prior."""
    ratio = var / MU_SCALE**2
    return 0.5 * (ratio + (mean / MU_SCALE).square() - 1 - ratio.log())


def rotation_is_free(given: Mapping[str, object]) -> bool:
    """Whether a rotation can raise the ELBO: free gene scales (relevance determination), cell scales all equal."""
    return "B" not in given and len(np.unique(np.asarray(given.get("A", 1.0)))) == 1


def check_prior_scales(given: object, n_factors: int) -> dict[str, object]:
    """Raise unless `given` maps names of scales to positive numbers (or one per factor)."""
    if given is None:
        return {}
    if not isinstance(given, dict):
        msg = f"`prior_scales` must be a dict such as {{'a': 0.5, 'sigma': 1.0}}, found {type(given).__name__}."
        raise TypeError(msg)
    for name, value in given.items():
        if name not in NAMES:
            msg = f"`prior_scales` has no scale {name!r}; the scales are {', '.join(map(repr, NAMES))}."
            raise ValueError(msg)
        if name in {"A", "B"} and np.ndim(value) > 0:
            values = np.asarray(value)
            if values.dtype.kind not in "fiu":
                msg = f"`prior_scales[{name!r}]` must be a number, or one for each factor, found {value!r}."
                raise TypeError(msg)
            if values.shape != (n_factors,) or not bool((values > 0).all() and np.isfinite(values).all()):
                msg = f"`prior_scales[{name!r}]` must be one positive number or one for each of {n_factors} factors."
                raise ValueError(msg)
        else:
            check_positive(f"prior_scales[{name!r}]", value)
    return dict(given)
