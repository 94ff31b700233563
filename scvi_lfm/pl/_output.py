"""What every plot does with its arguments before it draws, and with its figure after."""

from __future__ import annotations

import functools
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from .._calls import named_arguments

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")
Drawn = TypeVar("Drawn")


def plot(function: Callable[P, Drawn]) -> Callable[P, Drawn]:
    """Make a function that draws and returns its axes do as its `show`, `save` and `return_fig` say."""

    @functools.wraps(function)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Drawn:
        show, save, return_fig = (kwargs.get(name) for name in ("show", "save", "return_fig"))
        check_flag("show", show)
        check_flag("return_fig", return_fig)
        path = checked_path(save)
        axes = function(*args, **kwargs)
        return cast("Drawn", finish(cast("Any", axes), show=show, path=path, return_fig=bool(return_fig)))

    return named_arguments(drawn)


def check_flag(name: str, value: object) -> None:
    """Raise unless `value` is True, False or None."""
    if value is not None and type(value).__name__ not in {"bool", "bool_"}:
        msg = f"`{name}` must be True or False, found {value!r}."
        raise TypeError(msg)


def checked_path(save: object) -> Path | None:
    """Path to save a figure at, if any; raise unless matplotlib can write a file of that name there."""
    if save is None or save is False:
        return None
    if not isinstance(save, str | os.PathLike):
        msg = f"`save` must be the path of a file, such as 'figure.png', found {save!r}."
        raise TypeError(msg)
    from matplotlib.backend_bases import FigureCanvasBase

    path = Path(save).expanduser()
    endings = sorted(FigureCanvasBase.get_supported_filetypes())
    if path.suffix[1:].lower() not in endings:
        msg = f"`save` must be the path of a file that ends in one of .{', .'.join(endings)}, found {str(path)!r}."
        raise ValueError(msg)
    check_place("save", path)
    return path


def check_place(argument: str, path: Path) -> None:
    """Raise unless a file may be put at `path`, which `argument` named."""
    folder = path.parent
    try:
        if not folder.exists():
            msg = f"`{argument}`: there is no folder {str(folder)!r} to put {path.name!r} into. Make it first."
        elif not folder.is_dir():
            msg = (
                f"`{argument}`: {str(folder)!r} is a file, and no folder to put {path.name!r} into. Name another place."
            )
        elif path.is_dir():
            msg = f"`{argument}`: {str(path)!r} is a folder. Name a file in it."
        elif path.exists() and not path.is_file():
            msg = f"`{argument}`: {str(path)!r} is not a file. Name another one."
        elif not os.access(path if path.exists() else folder, os.W_OK):
            what, closed = ("file", path) if path.exists() else ("folder", folder)
            msg = f"`{argument}`: you may not write to the {what} {str(closed)!r}. Name another."
        else:
            _try_out(path)
            return
    except (OSError, ValueError) as error:
        msg = f"`{argument}`: {str(path)!r} cannot be written ({_reason(error)}). Name another place."
    raise ValueError(msg)


def _try_out(path: Path) -> None:
    """Write a little where the file will be written: permissions say nothing of full disks, and allow root all."""
    draft = _draft(path)
    try:
        with draft.open("xb", buffering=0) as file:
            file.write(bytes(4096))
    finally:
        draft.unlink(missing_ok=True)


def _draft(path: Path) -> Path:
    """Place of a file until it is whole: beside the one it goes to, which of a link is that of its file."""
    target = Path(os.path.realpath(path))
    return target.with_name(f".{target.stem}.{os.getpid()}{path.suffix}")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


@contextmanager
def whole_file(argument: str, path: Path) -> Iterator[Path]:
    """A place to write to; what is there in the end replaces the file at `path`, which `argument` named."""
    draft = _draft(path)
    try:
        yield draft
        draft.replace(os.path.realpath(path))
    except OSError as error:
        msg = f"`{argument}`: {str(path)!r} cannot be written: {_reason(error)}. What was there is as it was."
        raise OSError(error.errno, msg) from error
    finally:
        draft.unlink(missing_ok=True)


def finish(
    axes: Axes | list[Axes], *, show: object, path: Path | None, return_fig: bool
) -> Axes | list[Axes] | Figure | None:
    """Save the figure, and return it, show it or return `axes`; `show=None` does what scanpy is set to do."""
    first = axes[0] if isinstance(axes, list) else axes
    figure: Figure = first.figure.canvas.figure  # of axes in a subfigure, the whole
    if path is not None:
        with whole_file("save", path) as draft:
            figure.savefig(draft, bbox_inches="tight")
    if return_fig:
        return figure
    if show is None:
        import scanpy as sc

        show = sc.settings.autoshow
    if not show:
        return axes
    import matplotlib.pyplot as plt

    plt.show()
    return None
