"""What every tool has around it: names of arguments that help, workers to compute with, and lines while it works."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from .._calls import named_arguments
from .._settings import settings
from .._workers import with_workers
from ..inference.progress import beating

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
Result = TypeVar("Result")


def tool(function: Callable[P, Result]) -> Callable[P, Result]:
    """A public function that computes."""
    return named_arguments(_with_lines(with_workers(function)))


def _with_lines(function: Callable[P, Result]) -> Callable[P, Result]:
    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> Result:
        with beating(function.__name__, shown=bool(settings.progress and kwargs.get("progress", True))):
            return function(*args, **kwargs)

    return call
