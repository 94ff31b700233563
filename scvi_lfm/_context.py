"""Device, random numbers and Pyro state, without touching anything global."""

from __future__ import annotations

import contextlib
import os
import warnings
from typing import TYPE_CHECKING

import torch

from ._settings import logger, settings

if TYPE_CHECKING:
    from collections.abc import Iterator


# the process of the last computation
_computed_in: int | None = None


def resolve_device(device: str | torch.device) -> torch.device:
    """Turn `device` into a torch device that exists on this machine."""
    if not isinstance(device, str | torch.device):
        msg = f"`device` must be a string such as 'auto', 'cpu' or 'cuda', found {device!r}."
        raise TypeError(msg)
    name = settings.device if device == "auto" else device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        resolved = torch.device(name)
    except RuntimeError:
        msg = f"`device` {name!r} is not a device that torch knows; pass 'auto', 'cpu', 'cuda' or 'cuda:0'."
        raise ValueError(msg) from None
    if resolved.type not in {"cpu", "cuda"}:
        msg = f"`device` {name!r} is not supported; pass 'auto', 'cpu' or 'cuda'."
        raise ValueError(msg)
    if resolved.type == "cuda" and not torch.cuda.is_available():
        msg = f"`device` {name!r} was asked for, but torch finds no CUDA device here; pass device='cpu' or 'auto'."
        raise ValueError(msg)
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        msg = f"`device` {name!r} was asked for, but torch finds {torch.cuda.device_count()} CUDA device(s)."
        raise ValueError(msg)
    return resolved


def prepare_threads() -> None:
    """Compute on one thread in a process that was forked from one in which this package has computed.

    The threads that torch had started there do not exist in the copy, and torch waits for them for ever.
    """
    global _computed_in
    if _computed_in not in {None, os.getpid()} and torch.get_num_threads() > 1:
        torch.set_num_threads(1)
        logger.info("this process was forked after a computation: it computes on one thread")
    _computed_in = os.getpid()


@contextlib.contextmanager
def pyro_sandbox(seed: int, device: torch.device) -> Iterator[None]:
    """Run Pyro with its own seed, gradients, torch's own default dtype and no parameters; put all back afterwards."""
    # the first imports of Pyro and of torch's optimisers add warning filters
    with warnings.catch_warnings():
        import pyro

        devices = [device.index or 0] if device.type == "cuda" else []
        with (
            # gradients are needed even where a caller does without
            torch.inference_mode(mode=False),
            torch.enable_grad(),
            torch.random.fork_rng(devices=devices),
            pyro.get_param_store().scope(),
            pyro.validation_enabled(False),
        ):
            torch.manual_seed(seed)
            before = torch.get_default_dtype()
            # Pyro's networks and distributions make tensors of the default dtype
            torch.set_default_dtype(torch.float32)
            try:
                yield
            finally:
                torch.set_default_dtype(before)
