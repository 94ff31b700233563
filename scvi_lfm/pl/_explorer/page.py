"""A page of one file, which asks the network for nothing."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .arrays import Payload

FOLDER = files(__package__)


def page_parts(payload: Payload, texts: Mapping[str, str]) -> Iterator[bytes]:
    """The page, piece by piece; `texts` go where `page.html` names them, as text."""
    template, style, script = (
        (FOLDER / name).read_text(encoding="utf-8") for name in ("page.html", "page.css", "explorer.js")
    )
    pieces = {name: html.escape(text) for name, text in texts.items()}
    pieces |= {"style": style, "script": script, "policy": _policy(script)}
    for place, piece in enumerate(re.split(r"\{(\w+)\}", template)):
        if place % 2 == 0:
            yield piece.encode()
        elif piece == "payload":
            yield from payload.parts()
        else:
            yield pieces[piece].encode()


def _policy(script: str) -> str:
    """No request leaves the page, and no script but its own runs; what draws the points compiles functions."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    rules = {
        "default-src": "'none'",
        "script-src": f"'sha256-{digest}' 'unsafe-eval'",
        "style-src": "'unsafe-inline'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())
