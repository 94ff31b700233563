"""Check that every local link of built pages leads to a file, and to an element where it names one.

python .ci/check_links.py FOLDER
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """Names that links may lead to, and links."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.links: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take note of an element."""
        values = {name: value for name, value in attrs if value}
        self.names |= {values[name] for name in ("id", "name") if name in values}
        self.links |= {values[name] for name in ("href", "src") if name in values}


def broken_links(folder: Path) -> tuple[int, list[str]]:
    """How many local links there are, and those that lead nowhere."""
    # templates that a theme leaves behind are no pages
    paths = [path.resolve() for path in sorted(folder.rglob("*.html")) if "{{ pathto(" not in path.read_text("utf-8")]
    pages = {path: Page(path) for path in paths}
    found, checked = [], 0
    for path, page in pages.items():
        for link in sorted(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            checked += 1
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            name = unquote(parts.fragment)
            there = target.exists() and (not name or target not in pages or name in pages[target].names)
            if not there:
                found.append(f"{path.relative_to(folder.resolve())}: {link}")
    return checked, found


def main() -> None:
    """Print what is broken; exit status 1 where anything is."""
    checked, found = broken_links(Path(sys.argv[1]))
    print(*found, f"{checked} local links, {len(found)} broken", sep="\n")
    if found or not checked:
        sys.exit(1)


if __name__ == "__main__":
    main()
