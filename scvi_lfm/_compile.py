"""Element-wise functions compiled into few kernels, which read and write what a GPU works on once."""

from __future__ import annotations

import functools
import warnings
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import torch

from ._settings import logger, settings

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
Result = TypeVar("Result")


def fused(function: Callable[P, Result], device: torch.device) -> Callable[P, Result]:
    """A function of tensors on a device, compiled where that is a GPU and `settings.compile` asks for it."""
    return compiled(function) if device.type == "cuda" and settings.compile else function


@functools.cache
def compiled(function: Callable[P, Result]) -> Callable[P, Result]:
    """The function compiled for tensors of any size; itself where that turns out not to be possible."""
    kernels: Callable[P, Result] | None = None

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> Result:
        nonlocal kernels
        try:
            if kernels is not None:
                return kernels(*args, **kwargs)
            with warnings.catch_warnings():
                # of what torch imports for it, about its own code
                warnings.simplefilter("ignore")
                kernels = torch.compile(function, dynamic=True)
                return kernels(*args, **kwargs)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = str(error).strip().partition("\n")[0]
            logger.warning("settings.compile has no effect here, as torch.compile fails: %s", reason)
            kernels = function
            return function(*args, **kwargs)

    return run
