"""Arrays as text in a page: deflated, and in base64. `explorer/src/payload.js` reads them."""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

LEVEL = 6
TYPES = {"float16": "f2", "float32": "f4", "float64": "f8", "int8": "i1", "uint8": "u1", "uint16": "u2"}


@dataclass(frozen=True)
class Payload:
    """What a page carries: a header, and arrays or lists of names."""

    header: dict[str, object]
    arrays: dict[str, np.ndarray | list[str]]

    def parts(self) -> Iterator[bytes]:
        """The elements that hold it."""
        types = {name: _type(values) for name, values in self.arrays.items()}
        yield from _element("header", _text_bytes({**self.header, "arrays": types}))
        for name, values in self.arrays.items():
            yield from _element(name, _text_bytes(values) if isinstance(values, list) else shuffled(values))


def shuffled(values: np.ndarray) -> bytes:
    """Bytes in little-endian order: the first of every number, then the second of every number, and so on.

    Signs and exponents lie side by side, so that they compress.
    """
    little = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
    return little.reshape(-1).view(np.uint8).reshape(-1, values.dtype.itemsize).T.tobytes()


def _type(values: np.ndarray | list[str]) -> str:
    return "json" if isinstance(values, list) else TYPES[values.dtype.name]


def _text_bytes(content: object) -> bytes:
    # NaN is no JSON
    return json.dumps(content, allow_nan=False).encode()


def _element(name: str, content: bytes) -> Iterator[bytes]:
    yield f'<script type="application/octet-stream" id="lfm-{name}">'.encode()
    yield base64.b64encode(zlib.compress(content, LEVEL))
    yield b"</script>\n"
