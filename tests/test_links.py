"""Links inside the repository lead somewhere: files exist, and so do the headings that anchors name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TUTORIALS = sorted((ROOT / "tutorials").glob("*.ipynb"))
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "guide").glob("*.md")])


def prose(text: str) -> str:
    """Without code, which may hold anything."""
    text = re.sub(r"^(```+|~~~+)(?!\{(?:image|figure|include)\}).*?^\1[`~]*$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"(?<!`)`[^`\n]+`(?!`)", "", text)


def written(page: Path) -> str:
    """A page in Markdown; of a notebook, the cells that are."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".md":
        return text
    cells = json.loads(text)["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def targets(page: Path) -> set[str]:
    """What a page links to, shows or includes, but for other sites."""
    text = prose(written(page))
    found = re.findall(r"\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)", text)
    found += re.findall(r"^\[[^\]]+\]:\s+(\S+)", text, flags=re.MULTILINE)
    found += re.findall(r"\b(?:href|src)=\"([^\"]+)\"", text)
    found += re.findall(r"^:::+\{(?:image|figure|include)\} (\S+)", text, flags=re.MULTILINE)
    found += re.findall(r"^```+\{(?:image|figure|include)\} (\S+)", text, flags=re.MULTILINE)
    return {target for target in found if not re.match(r"[a-z][a-z+.-]*:", target)}


def anchors(page: Path) -> set[str]:
    """Of headings, as GitHub and MyST make them, and those that a page names itself."""
    text = written(page)
    named = set(re.findall(r"^\(([\w-]+)\)=$|\{#([\w-]+)", text, flags=re.MULTILINE))
    found = {name for pair in named for name in pair if name}
    for heading in re.findall(r"^#{1,6} (.+?)\s*$", prose_keeping_code(text), flags=re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        repeated = sum(name == slug or re.fullmatch(rf"{re.escape(slug)}-\d+", name) is not None for name in found)
        found.add(f"{slug}-{repeated}" if repeated else slug)
    return found


def prose_keeping_code(text: str) -> str:
    return re.sub(r"^(```+|~~~+).*?^\1[`~]*$", "", text, flags=re.MULTILINE | re.DOTALL)


def place(page: Path, path: str) -> Path:
    """Where a target lies; the build copies the tutorials below docs/."""
    folder = ROOT / "docs" / "tutorials" if page in TUTORIALS else page.parent
    target = (folder / path).resolve()
    return ROOT / "tutorials" / target.name if target.parent == ROOT / "docs" / "tutorials" else target


def broken(page: Path) -> list[str]:
    found = []
    for target in sorted(targets(page)):
        path, _, anchor = target.partition("#")
        file = place(page, path) if path else page
        if not file.exists() or (anchor and file.suffix in {".md", ".ipynb"} and anchor not in anchors(file)):
            found.append(target)
    return found


@pytest.mark.parametrize("page", [*PAGES, *TUTORIALS], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert broken(page) == []


def test_the_walk_sees_broken_links(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# One *thing*: `code`, and more\n\n(mine)=\n## Two\n## Two\n\n"
        "[a](page.md) [b](#one-thing-code-and-more) [c](#mine) [d](#two-1) [e](https://x.org) [long\ntext](page.md)\n"
        "`[code](no.md)`\n\n```\n[code](no.md)\n# Heading in code\n```\n\n"
        "[f](gone.md) [g](#three) [h](page.md#four) ![i](gone.png \"title\")\n\n[j]: gone.txt\n\n"
        '<img src="gone.svg">\n[k](#heading-in-code)\n\n```{image} gone.jpg\n:width: 3\n```\n'
    )  # fmt: skip
    assert set(broken(page)) == {
        "gone.md", "#three", "page.md#four", "gone.png", "gone.txt", "gone.svg", "gone.jpg", "#heading-in-code",
    }  # fmt: skip
