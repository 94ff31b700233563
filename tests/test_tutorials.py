"""The stored tutorials are whole: run from top to bottom, without warnings, and their links lead somewhere."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "tutorials").glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return json.loads(request.param.read_text(encoding="utf-8"))


def cells(notebook, kind):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def test_ran_once_from_top_to_bottom(notebook):
    counts = [cell["execution_count"] for cell in cells(notebook, "code")]
    assert counts == list(range(1, len(counts) + 1))


def test_no_warnings_and_no_errors(notebook):
    outputs = [output for cell in cells(notebook, "code") for output in cell["outputs"]]
    assert outputs
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert not [output["text"] for output in outputs if output.get("name") == "stderr"]


def test_pictures_are_stored(notebook):
    """Run without the notebook's own way to draw, cells show none, and nothing else tells."""
    drawing = [cell for cell in cells(notebook, "code") if "".join(cell["source"]).endswith("plt.show()")]
    assert [cell["execution_count"] for cell in drawing if "image/png" not in str(cell["outputs"])] == []


def test_links_lead_to_tutorials(notebook):
    text = "\n".join("".join(cell["source"]) for cell in cells(notebook, "markdown"))
    targets = re.findall(r"\]\((?!https?://)([^)#]+)", text)
    missing = [target for target in targets if not (ROOT / "tutorials" / target).exists()]
    assert not missing


def test_every_tutorial_is_in_the_index():
    index = (ROOT / "docs" / "tutorials.md").read_text(encoding="utf-8")
    assert [path.name for path in NOTEBOOKS if f"(tutorials/{path.name})" not in index] == []
