"""Calls that are to warn of nothing."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def no_warning(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What a call returns; a warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return call(*arguments, **options)
