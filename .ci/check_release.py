"""Check that every place that names the version of a release agrees, and that its changes are written down.

python .ci/check_release.py v1.2.3
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def faults(root: Path, version: str) -> list[str]:
    """What stands in the way of releasing a version."""
    if not re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", version):
        return [f"{version!r} is no version such as 1.2.3 or 1.2.3rc1"]
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = (root / "CITATION.cff").read_text(encoding="utf-8")
    cited = re.search(r"^version: [\"']?([^\s\"']+)", citation, re.MULTILINE)
    package = re.search(
        r'^__version__ = "(.+)"$', (root / "scvi_lfm" / "__init__.py").read_text(encoding="utf-8"), re.MULTILINE
    )
    changes = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    dated = re.search(rf"^## \[{re.escape(version)}\] - (\d{{4}}-\d\d-\d\d)$", changes, re.MULTILINE)
    released = re.search(r"^date-released: [\"']?(\d{4}-\d\d-\d\d)", citation, re.MULTILINE)
    found = []
    if project["version"] != version:
        found.append(f"pyproject.toml: version is {project['version']}")
    if cited is None or cited[1] != version:
        found.append(f"CITATION.cff: version is {cited[1] if cited else 'missing'}")
    if package is None or package[1] != version:
        found.append(f"scvi_lfm/__init__.py: __version__ is {package[1] if package else 'missing'}")
    if dated is None:
        found.append(f"CHANGELOG.md: there is no heading '## [{version}] - YYYY-MM-DD'")
    elif released is None or released[1] != dated[1]:
        found.append(f"CITATION.cff: date-released is {released[1] if released else 'missing'}, and not {dated[1]}")
    return found


def main() -> None:
    """Print what stands in the way; exit status 1 where anything does."""
    version = sys.argv[1].removeprefix("v")
    found = faults(ROOT, version)
    print(*found, f"{version}: {len(found)} faults", sep="\n")
    if found:
        sys.exit(1)


if __name__ == "__main__":
    main()
