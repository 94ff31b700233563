"""Calls that may warn of nothing, whatever warnings a test lets pass."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def no_warning(call: Callable, *arguments: object, **options: object) -> object:
    """What a call returns, every warning of which is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return call(*arguments, **options)
