"""Package-wide settings and the package's logger."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
from numbers import Real
from typing import TYPE_CHECKING

from ._spelling import near_matches

logger = logging.getLogger("scvi_lfm")
logger.addHandler(logging.NullHandler())

_LEVELS = {0: logging.ERROR, 1: logging.WARNING, 2: logging.INFO, 3: logging.DEBUG}


class _ToStderr(logging.Handler):
    """Writes to what `sys.stderr` is at the time: a notebook may replace it, and a server may have none."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, if there is where to."""
        if sys.stderr is not None:
            with contextlib.suppress(OSError, ValueError):  # it may be closed
                print(self.format(record), file=sys.stderr)


class Settings:
    """Values that hold for every call until they are changed.

    Attributes
    ----------
    device
        Where ``device="auto"`` computes: ``"auto"`` (a CUDA device if there is one, else the CPU) or a torch device
        string such as ``"cpu"`` or ``"cuda:1"``.
    progress
        Whether calls may say how far they are, by a bar or by a line every half minute. ``False`` silences them all.
    max_cov_bytes
        Upper bound, in bytes, for covariances stored per cell or per gene.
    half_density
        Share of entries other than zero from which on a GPU takes a block of cells as a dense matrix in half precision,
        in fits of the Normal: values are rounded to 11 bits (whole numbers up to 2,048 are kept), sums have the
        precision that they always have. ``None`` (default): never.
    compile
        Whether a GPU computes what a fit of counts does to each entry in a few kernels made by :func:`torch.compile`,
        which takes the first fit of a process up to a minute more. ``False`` by default.
    verbosity
        0 errors, 1 warnings (default), 2 what was chosen and how long it took, 3 everything.
    """

    def __init__(self) -> None:
        self._device = "auto"
        self._progress = True
        self._max_cov_bytes = 2**30
        self._half_density: float | None = None
        self._compile = False
        self._verbosity = 1
        self._handler: logging.Handler | None = None

    if not TYPE_CHECKING:  # which would take every name for a setting

        def __setattr__(self, name: str, value: object) -> None:
            if not name.startswith("_") and name not in dir(self):
                msg = f"There is no settings.{name}. {near_matches(name, dir(self))}"
                raise AttributeError(msg)
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted(name for name, value in vars(Settings).items() if isinstance(value, property))

    @property
    def device(self) -> str:
        """Device of ``device="auto"``."""
        return self._device

    @device.setter
    def device(self, value: str) -> None:
        if not isinstance(value, str):
            msg = f"settings.device must be a string such as 'auto', 'cpu' or 'cuda', found {value!r}."
            raise TypeError(msg)
        if not re.fullmatch(r"auto|(cpu|cuda)(:\d+)?", value):
            msg = f"settings.device must be 'auto', 'cpu', 'cuda' or such as 'cuda:0', found {value!r}."
            raise ValueError(msg)
        self._device = value

    @property
    def progress(self) -> bool:
        """Whether calls may say how far they are."""
        return self._progress

    @progress.setter
    def progress(self, value: bool) -> None:
        self._progress = _flag("progress", value)

    @property
    def max_cov_bytes(self) -> int:
        """Bound on stored covariances, in bytes."""
        return self._max_cov_bytes

    @max_cov_bytes.setter
    def max_cov_bytes(self, value: int) -> None:
        msg = f"settings.max_cov_bytes must be a whole number of bytes, at least 0, found {value!r}."
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(msg)
        if not float(value).is_integer() or value < 0:
            raise ValueError(msg)
        self._max_cov_bytes = int(value)

    @property
    def half_density(self) -> float | None:
        """Density from which on a GPU takes blocks as dense matrices in half precision."""
        return self._half_density

    @half_density.setter
    def half_density(self, value: float | None) -> None:
        msg = f"settings.half_density must be a share of entries between 0 and 1, or None for never, found {value!r}."
        if value is not None and (isinstance(value, bool) or not isinstance(value, Real)):
            raise TypeError(msg)
        if value is not None and not 0 <= float(value) <= 1:
            raise ValueError(msg)
        self._half_density = None if value is None else float(value)

    @property
    def compile(self) -> bool:
        """Whether a GPU computes entries of counts by compiled kernels."""
        return self._compile

    @compile.setter
    def compile(self, value: bool) -> None:
        self._compile = _flag("compile", value)

    @property
    def verbosity(self) -> int:
        """Level of the package's logger."""
        return self._verbosity

    @verbosity.setter
    def verbosity(self, value: int) -> None:
        msg = f"settings.verbosity must be one of {sorted(_LEVELS)}, found {value!r}."
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(msg)
        if value not in _LEVELS:
            raise ValueError(msg)
        self._verbosity = int(value)
        logger.setLevel(_LEVELS[self._verbosity])
        if self._handler is None:
            self._handler = _ToStderr()
            self._handler.setFormatter(logging.Formatter("scvi_lfm: %(message)s"))
            logger.addHandler(self._handler)


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        msg = f"settings.{name} must be True or False, found {value!r}."
        raise TypeError(msg)
    return value


settings = Settings()
