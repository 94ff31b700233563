"""A guide that the user brings: any Pyro program over the model's latents."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pyro
import torch
from pyro import poutine

from ...linalg.packed import outer
from .guides import RowMoments

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor

# moments are those of this many draws: means to a thirtieth of a standard deviation
DRAWS = 1000


class OwnGuide:
    """`function(y, *, n_cells, rows)` with its parameters in Pyro's store, which must be there after the first call."""

    vectorises = False

    def __init__(self, function: Callable[..., Any], y: Tensor, rows: Tensor, n_cells: int, n_factors: int) -> None:
        self._function, self._n_cells, self._n_factors = function, n_cells, n_factors
        self._check(self._draw(y, rows), len(y), y.shape[1])
        self._parameters = [tensor for _, tensor in pyro.get_param_store().named_parameters()]
        if not self._parameters:
            msg = "The guide that was passed has no parameters to learn: make them with pyro.param or pyro.module."
            raise ValueError(msg)

    def program(self, rows: Tensor) -> Callable[..., Any]:
        """The guide of some cells, a function of their values."""
        return partial(self._function, n_cells=self._n_cells, rows=rows)

    def dense_parameters(self) -> list[Tensor]:
        """Parameters, all of them."""
        return self._parameters

    def sparse_parameters(self) -> list[Tensor]:
        """No parameters: none is known to be by cell."""
        return []

    def moments(self, blocks: Iterable[tuple[Tensor, Tensor]]) -> RowMoments:
        """Means and covariances of draws."""
        cells = []
        with torch.no_grad():
            for rows, y in blocks:
                first = self._draw(y, rows)
                found = {"a": _Moments(_rows(first, "a", "A")), "b": _Moments(_rows(first, "b", "B"))}
                level = 0.0
                for _ in range(DRAWS):
                    sites = self._draw(y, rows)
                    level += float(sites["mu"]) / DRAWS
                    found["a"].add(_rows(sites, "a", "A"))
                    found["b"].add(_rows(sites, "b", "B"))
                cells.append(found["a"].both())
        cell_mean, cell_cov = (torch.cat(parts) for parts in zip(*cells, strict=True))
        return RowMoments(level, cell_mean, cell_cov, *found["b"].both())

    def _draw(self, y: Tensor, rows: Tensor) -> dict[str, Tensor]:
        trace = poutine.trace(self._function).get_trace(y, n_cells=self._n_cells, rows=rows)
        sites = {name: trace.nodes[name]["value"] for name in trace.stochastic_nodes}
        return {name: value for name, value in sites.items() if value is not None}

    def _check(self, sites: dict[str, Tensor], batch: int, m: int) -> None:
        r = self._n_factors
        shapes = {"mu": (), "a": (batch, 1), "A": (batch, 1, r), "b": (m,), "B": (m, r)}
        for name, shape in shapes.items():
            if name not in sites:
                msg = f"The guide that was passed has no site {name!r}; the model's are {', '.join(shapes)}."
                raise ValueError(msg)
            if sites[name].shape != shape:
                msg = f"Site {name!r} of the guide that was passed has shape {tuple(sites[name].shape)}, not {shape}."
                raise ValueError(msg)


def _rows(sites: dict[str, Tensor], scalar: str, vector: str) -> Tensor:
    vectors = sites[vector]
    return torch.cat([sites[scalar].reshape(len(vectors), 1), vectors.reshape(len(vectors), -1)], dim=1).double()


class _Moments:
    """Running mean and packed covariance of each row, around a first draw."""

    def __init__(self, centre: Tensor) -> None:
        self._centre, self._n = centre, 0
        self._sum, self._squares = torch.zeros_like(centre), torch.zeros_like(outer(centre))

    def add(self, draw: Tensor) -> None:
        """Take one more draw."""
        difference = draw - self._centre
        self._n += 1
        self._sum += difference
        self._squares += outer(difference)

    def both(self) -> tuple[Tensor, Tensor]:
        """Mean and covariance."""
        mean = self._sum / self._n
        return self._centre + mean, (self._squares - self._n * outer(mean)) / (self._n - 1)
