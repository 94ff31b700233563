"""What may go wrong on a cluster, in words of ours."""

from __future__ import annotations

from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .reader import reading

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class FunctionError(Exception):
    """Carries an error of ours from a worker: errors of what computes a chunk come without."""


@contextmanager
def raised_by_function() -> Iterator[None]:
    """Tell errors that come from here from those of what computes a chunk."""
    try:
        yield
    except FunctionError:
        raise
    except Exception as error:
        raise FunctionError(error) from error


@contextmanager
def naming_cells(where: str, first: int, last: int, chunks: Mapping[str, slice]) -> Iterator[None]:
    """Raise errors of ours for those of a task on cells `first` to `last`.

    Raises
    ------
    OSError
        A chunk could not be computed.
    RuntimeError
        Workers died of the task, one after the other, or the client was closed.
    """
    from distributed import KilledWorker

    cells = slice(first, last + 1)
    try:
        with reading(where, cells):
            yield
    except FunctionError as error:
        raise error.args[0] from None
    except KilledWorker as error:
        of_chunk = chunks.get(str(error.task), cells)
        msg = (
            f"The values of {where} at cells {of_chunk.start} to {of_chunk.stop - 1} could not be worked on: "
            f"{error.allowed_failures + 1} workers died of them, one after the other, the last at "
            f"{error.last_worker.address}. Mostly a worker takes more memory than it has: give each more "
            "(memory_limit=) or fewer threads, or make chunks smaller, with adata.X = adata.X.rechunk((1000, -1)) for "
            "example; the log of the worker may tell."
        )
        raise RuntimeError(msg) from error
    except CancelledError as error:
        detail = " ".join(str(error).split())
        msg = (
            f"The dask client was closed, or lost its scheduler or its data, while cells {first} to {last} of {where} "
            f"were worked on ({detail}). Start a cluster and a client again, and open the values anew."
        )
        raise RuntimeError(msg) from error
