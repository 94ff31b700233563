"""What a command may replace without being told to: what an earlier one has written, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._keys import WRITTEN
from ._changes import FRAMES, MAPPINGS
from ._files import DATA
from ._messages import CommandError
from ._probe import check_survives
from ._stores import reading

if TYPE_CHECKING:
    from pathlib import Path

    from ._changes import Place

# each is a column of one of the tables alone
_COLUMNS = ("lfsr", "log_ratio")
_ADVICE = "name another file, or pass --force to replace it"


def check_replaceable(out: Path, data: Path) -> None:
    """Raise if a file holds more than results, noted as such, beside what `data`, which are whole, hold too."""
    if out.suffix not in DATA or out.is_dir() != (out.suffix == ".zarr") or _is_empty(out):
        return
    try:
        if out.suffix == ".h5ad":
            check_survives(out)
        with reading(out) as store:
            noted, found = _noted(store), _fields(store)
    except MemoryError:
        raise
    except Exception as error:
        msg = f"{out} cannot be read as {out.suffix[1:]}, so that nobody knows what would be lost: {_ADVICE}"
        raise CommandError(msg) from error
    if not noted:
        msg = f"{out} holds no result of this package, and would be replaced: {_ADVICE}"
        raise CommandError(msg)
    with reading(data) as store:
        others = sorted(found - noted - _fields(store))
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        msg = (
            f"{out} holds {_words(others[0])}{more}, which {data} does not and which is no result of this package, and "
            f"would be replaced: {_ADVICE}"
        )
        raise CommandError(msg)


def check_replaceable_table(path: Path) -> None:
    """Raise if a file holds something else than one of the tables."""
    if not path.is_file() or _is_empty(path):
        return
    with path.open("rb") as file:
        columns = file.readline(10_000).decode(errors="replace").strip().split(",")
    if not any(name in columns for name in _COLUMNS):
        msg = f"{path} holds no table of this package, and would be replaced: {_ADVICE}"
        raise CommandError(msg)


def _is_empty(path: Path) -> bool:
    return not path.exists() or (path.is_file() and path.stat().st_size == 0)


def _noted(store: Any) -> set[Place]:
    """The fields that tools have noted that they wrote."""
    record = store["uns"][WRITTEN] if "uns" in store and WRITTEN in store["uns"] else {}
    return {(str(container), str(name)) for container in record for name in record[container]}


def _fields(store: Any) -> set[Place]:
    """All fields but X, by container and name."""
    found = {("raw", "")} if "raw" in store and hasattr(store["raw"], "keys") else set()
    for container in (*FRAMES, *MAPPINGS):
        part: Any = store.get(container, {})
        names = part if hasattr(part, "keys") else part.dtype.names or ()  # a table, as in encodings of old
        index = {"_index", "index", "__categories", str(getattr(part, "attrs", {}).get("_index", "")), WRITTEN}
        found |= {(container, str(name)) for name in names if str(name) not in index}
    return found


def _words(place: Place) -> str:
    container, name = place
    return f"{container}[{name!r}]" if name else container
