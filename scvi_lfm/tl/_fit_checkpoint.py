"""Where `tl.fit` may keep its state: what is wrong with a path, before any work is done."""

from __future__ import annotations

import os
from pathlib import Path

from ..inference.checkpoint_lock import check_not_taken


def check_checkpoint(path: object) -> None:
    """Raise unless a file can be written there."""
    if path is None:
        return
    if not isinstance(path, str | os.PathLike):
        msg = f"`checkpoint` must be a path such as 'fit.ckpt', found {type(path).__name__}."
        raise TypeError(msg)
    if not str(path) or Path(path).is_dir():
        msg = f"`checkpoint` must be the path of a file, and {str(path)!r} is a folder. Pass a name in it."
        raise ValueError(msg)
    if Path(path).exists() and not Path(path).is_file():
        msg = f"`checkpoint`={str(path)!r} is no regular file. Pass the path of a file, there already or not."
        raise ValueError(msg)
    folder = Path(path).resolve().parent
    if not folder.is_dir():
        msg = f"`checkpoint`={str(path)!r} lies in a folder that does not exist, {str(folder)!r}. Make it first."
        raise ValueError(msg)
    if not os.access(folder, os.W_OK | os.X_OK):
        msg = f"`checkpoint`={str(path)!r} lies in {str(folder)!r}, where nothing may be written. Pass another path."
        raise ValueError(msg)
    check_not_taken(Path(path))
