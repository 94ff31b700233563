"""`params`: the arguments that repeat a fit, written and read as the record of arguments says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..._fit_arguments import ARGUMENTS, ARRAY, CALLABLE, DEFAULTS, Argument, FitArguments
from .lookup import entry

if TYPE_CHECKING:
    from collections.abc import Mapping


def params_of(arguments: FitArguments) -> dict[str, Any]:
    """Stored form of arguments with every choice made: arrays and programs by a word, and nothing for None.

    Older readers of h5ad cannot hold None.
    """
    given = arguments.named()
    values = {name: _stored(given[name], known) for name, known in ARGUMENTS.items() if known.belongs(arguments)}
    return {name: value for name, value in values.items() if value is not None}


def arguments_of(params: Mapping[str, Any], key: str) -> FitArguments:
    """The arguments that `params` of the fit under `key` were made of, as far as they tell; None for a lost seed.

    Raises
    ------
    KeyError
        One that every fit has is missing.
    """
    values = DEFAULTS | {name: None for name, known in ARGUMENTS.items() if known.stored == "seed"}
    values |= {name: params[name] for name in ARGUMENTS if name in params}
    values |= {name: entry(params, name, key) for name, known in ARGUMENTS.items() if known.always}
    return FitArguments(**{name: _read(values[name], known) for name, known in ARGUMENTS.items()})


def _stored(value: Any, known: Argument) -> Any:
    if value is None or not known.stored:
        return None
    if known.stored == "columns":
        return np.array([value] if isinstance(value, str) else list(value), dtype=object)
    if known.stored == "scales":
        return {name: np.array(scale, dtype=float)[()] for name, scale in value.items()} or None
    if known.stored == "seed":
        return None if isinstance(value, np.random.Generator) else int(value)
    if known.stored == "name" and not isinstance(value, str):
        return CALLABLE if callable(value) else ARRAY
    return value if isinstance(value, int | float) else str(value)


def _read(value: Any, known: Argument) -> Any:
    """A value of `params`, in which a file makes numbers and names of columns arrays."""
    if value is None or known.stored in {"", "scales", "seed"}:
        return value
    if known.stored == "columns":
        return [str(name) for name in np.atleast_1d(value)]
    return known.number(value) if known.minimum is not None or known.positive else str(value)
