"""The model page can be ticked: every formula names its function, and every letter is in the legend."""

import ast
import re
from pathlib import Path

import scvi_lfm as lfm

PACKAGE = Path(lfm.__file__).parent
PAGE = (Path(__file__).parents[1] / "docs" / "model.md").read_text()
LEGEND = PAGE[PAGE.index("## Symbols") : PAGE.index("## linalg")]
WHERE = re.compile(r"\*`[\w/]+\.py`: `")
UPRIGHT = re.compile(r"\\(?:mathrm|text|texttt|mathtt)\{[^{}]*\}|\\(?:begin|end)\{\w+\}")
LETTER = re.compile(r"\\(?:mathcal\s*\{?\s*[A-Z]|[a-zA-Z]+)|[a-zA-Z]")
GREEK = (
    "alpha beta gamma delta varepsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau phi chi psi omega ell"
)
GREEK_LETTERS = {f"\\{form}" for name in (*GREEK.split(), "ell") for form in (name, name.capitalize())}


def letters(text: str) -> set[str]:
    """Letters of all formulas in a text, calligraphic ones apart from the others."""
    formulas = re.findall(r"\$\$(.*?)\$\$|\$([^$]+?)\$", text, flags=re.DOTALL)
    found = (LETTER.findall(UPRIGHT.sub(" ", displayed or inline)) for displayed, inline in formulas)
    names = {re.sub(r"[{\s]", "", name) for some in found for name in some}
    return {name for name in names if name.startswith("\\mathcal") or len(name) == 1 or name in GREEK_LETTERS}


def unexplained(page: str) -> list[str]:
    """First lines of displayed formulas that are not followed by where they are computed."""
    blocks = re.split(r"^[ ]*\$\$\n", page, flags=re.MULTILINE)
    formulas, texts = blocks[1::2], blocks[2::2]
    return [formula.split("\n")[0] for formula, text in zip(formulas, texts, strict=True) if not says_where(text)]


def says_where(text: str) -> bool:
    """Whether a place in the code is named before the next formula, or the next section."""
    return WHERE.search(re.split(r"^#", text, maxsplit=1, flags=re.MULTILINE)[0]) is not None


def test_every_letter_is_in_the_legend():
    assert letters(PAGE) - letters(LEGEND) == set()


def test_names_of_the_legend_are_in_the_code():
    """The last column of its tables says what to look for."""
    nodes = (node for path in PACKAGE.rglob("*.py") for node in ast.walk(ast.parse(path.read_text())))
    known = {getattr(node, part, None) for node in nodes for part in ("id", "attr", "arg", "name")}
    columns = " ".join(row.split("|")[-2] for row in LEGEND.splitlines() if row.startswith("|"))
    names = {name for code in re.findall(r"`([^`]+)`", columns) for name in re.findall(r"[A-Za-z_]\w*", code)}
    assert names - known == set()


def test_every_formula_says_where_it_is_computed():
    missing = unexplained(PAGE[PAGE.index("## linalg") :])
    assert missing == []


def test_the_walk_sees_what_is_missing():
    assert letters(r"$a + \mathrm{sd}_i$ and $\mathcal H, \hat\sigma$") == {"a", "i", "\\mathcalH", "\\sigma"}
    assert unexplained("$$\na = b\n$$\n\n*`f.py`: `g`*\n\n$$\nc = d\n$$\n\n## Next\n\n*`f.py`: `h`*\n") == ["c = d"]


def test_no_heading_stands_twice():
    headings = re.findall(r"^##+ .*$", PAGE, flags=re.MULTILINE)
    assert len(headings) == len(set(headings))
