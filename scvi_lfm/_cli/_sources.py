"""A file that a command reads, and the way in which what it finds is written."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from ._changes import Snapshot
from ._copies import Stamp, size, stamp
from ._files import read_data
from ._messages import CommandError
from ._replaceable import check_replaceable
from ._stores import can_take_fields

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    import anndata as ad


@dataclass(frozen=True)
class Source:
    """Where an AnnData was read from, and as what.

    `way` is how it is written with what is new: into a `"copy"` of its file; into a folder with links to its files
    (`"link"`), which replaces the store; without values, as `"results"`; or as a `"whole"`, where formats differ.
    """

    path: Path
    has_values: bool  # which are in the file still
    way: str
    before: Snapshot
    stamp: Stamp

    @cached_property
    def size(self) -> int:
        """Bytes on the disk."""
        return size(self.path)

    def is_unchanged(self) -> bool:
        """Whether the file is the one that was read."""
        return stamp(self.path) == self.stamp


def read_source(arguments: argparse.Namespace, *, values: bool = True) -> tuple[ad.AnnData, Source]:
    """Read the data of a command, and note what they are, to write them later; what they would replace is looked at."""
    path = arguments.data
    is_copied = arguments.in_place or arguments.out is not None
    before = stamp(path) if is_copied and path.exists() else ()
    adata = read_data(path, values=values)
    if arguments.out is not None and not (arguments.force or getattr(arguments, "plan", False)):
        check_replaceable(arguments.out, path)
    if values and adata.X is None and not adata.layers:
        msg = f"{path} has neither X nor layers. If it holds results alone: scvi-lfm merge DATA {path} OUT"
        raise CommandError(msg)
    return adata, Source(path, values, _way(arguments), Snapshot.of(adata), before)


def _way(arguments: argparse.Namespace) -> str:
    path = arguments.data
    if arguments.in_place:
        if not can_take_fields(path):
            msg = (
                f"{path} is in an encoding of old, which --in-place does not write into: name a file to write to, "
                "which will have the current one"
            )
            raise CommandError(msg)
        return "link"
    if _results(arguments):
        return "results"
    same = arguments.out is not None and arguments.out.suffix == path.suffix
    return "copy" if same and can_take_fields(path) else "whole"


def target_of(arguments: argparse.Namespace) -> Path | None:
    """What a command writes to: the file that is named, or the store itself."""
    if not arguments.in_place:
        return arguments.out
    for option, given in (("a file to write to", arguments.out is not None), ("--results-only", _results(arguments))):
        if given:
            msg = f"--in-place writes into {arguments.data}: leave {option} out, or --in-place"
            raise CommandError(msg)
    if arguments.data.suffix != ".zarr":
        msg = (
            f"--in-place is for zarr: a process that ends while it writes into {arguments.data} would leave it broken. "
            "Name a file to write to, or the same one with --force, which replaces it once the new one is whole"
        )
        raise CommandError(msg)
    return arguments.data


def _results(arguments: argparse.Namespace) -> bool:
    return bool(getattr(arguments, "results_only", False))  # merge has no such option
