"""A file that HDF5 can write to on a disk that may be full."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer

_LARGE = 2**20


class Forgiving(io.RawIOBase):
    """A file whose writing never fails: what HDF5 holds is out of order once it did, and then it crashes the process.

    The first error is kept, to be raised where HDF5 is at rest. What is written after it is kept in memory, because
    HDF5 reads some of it again: all but large pieces, which are values.
    """

    def __init__(self, file: io.FileIO) -> None:
        self.file = file
        self.error: OSError | None = None
        self.kept: list[tuple[int, bytes]] = []

    def check(self) -> None:
        """Raise the error of a write, if one has failed."""
        if self.error is not None:
            raise self.error

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def truncate(self, size: int | None = None, /) -> int:
        if self.error is None:
            try:
                self.file.truncate(size)
            except OSError as error:
                self.error = error
        return self.file.tell() if size is None else size

    def write(self, values: Buffer, /) -> int:
        left, start = memoryview(values).cast("B"), self.file.tell()
        size = len(left)
        while self.error is None and len(left):
            try:
                left = left[self.file.write(left) :]
            except OSError as error:
                self.error = error
        if 0 < len(left) <= _LARGE:
            self.kept.append((start + size - len(left), bytes(left)))
        self.file.seek(start + size)
        return size

    def readinto(self, buffer: Buffer, /) -> int:
        values, start = memoryview(buffer).cast("B"), self.file.tell()
        size = self.file.readinto(values) or 0
        if self.error is not None:
            values[size:] = bytes(len(values) - size)
            size = len(values)
            for place, written in self.kept:
                first, last = max(start, place), min(start + size, place + len(written))
                if first < last:
                    values[first - start : last - start] = written[first - place : last - place]
            self.file.seek(start + size)
        return size
