"""What every tool has around it: names of arguments that help, and workers to compute with."""

from __future__ import annotations

from typing import TYPE_CHECKING, ParamSpec, TypeVar

from .._calls import named_arguments
from .._workers import with_workers

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
Result = TypeVar("Result")


def tool(function: Callable[P, Result]) -> Callable[P, Result]:
    """A public function that computes."""
    return named_arguments(with_workers(function))
