"""Files, steps and names that the contributing page sends people to exist."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "scvi_lfm"
PAGE = (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8")
CODE = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", PAGE, flags=re.MULTILINE | re.DOTALL))
# of what the reader makes
NEW = {"pl/_name.py", "tests/pl/test_name.py", "tests/tl/test_name.py", "meta.yaml"}


def exists(file: str) -> bool:
    """In the repository, in the package, or, a name alone, somewhere in the package or among the workflows."""
    anywhere = "/" not in file and (any(PACKAGE.rglob(file)) or (ROOT / ".github" / "workflows" / file).exists())
    return (ROOT / file).exists() or (PACKAGE / file).exists() or anywhere


def test_files_exist() -> None:
    files = {text for text in CODE if re.fullmatch(r"[\w./-]+\.(py|md|toml|yml|yaml|cff)", text)} - NEW
    assert len(files) > 30
    assert sorted(file for file in files if not exists(file)) == []


def test_steps_exist() -> None:
    steps = (ROOT / ".ci" / "steps").read_text(encoding="utf-8")
    named = set(re.findall(r"\.ci/steps (\w+)", PAGE)) | {"types", "spelling"}
    assert [name for name in named if not re.search(rf"^{name}\(\) \{{", steps, re.MULTILINE)] == []


def test_an_unknown_step_is_refused() -> None:
    done = subprocess.run(["bash", ROOT / ".ci" / "steps", "nonsense"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "no such step: nonsense\n"


def test_every_room_has_a_word() -> None:
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert {room for room in rooms if f"**`{room}`**" not in PAGE} == set()


def test_names_are_defined_in_the_package() -> None:
    source = "\n".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    names = ["CellMatrix", "CellSource", "Likelihood", "CountNoise", "Field", "FitOptions", "one_axes", "many_axes"]
    names += ["plot", "reading", "has_rate", "linear", "has_levels"]
    for name in names:
        assert any(text.startswith(name) for text in CODE), name
        assert re.search(rf"(class|def) {name}\b|^ +{name}: ", source, re.MULTILINE), name
