"""What a release is made of: one version everywhere, actions named by their commits, and no stored token."""

from __future__ import annotations

import re
import runpy
import shutil
import tomllib
from pathlib import Path

import pytest

import scvi_lfm as lfm

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CITATION = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
faults = runpy.run_path(str(ROOT / ".ci" / "check_release.py"))["faults"]


def test_the_version_is_the_same_everywhere() -> None:
    assert f"\nversion: {PROJECT['version']}\n" in CITATION
    assert PROJECT["version"] == lfm.__version__


def test_the_licence_and_the_authors_are_the_same_everywhere() -> None:
    assert f"\nlicense: {PROJECT['license']}\n" in CITATION
    assert "BSD 3-Clause License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert re.findall(r"^  - name: (.+)$", CITATION.partition("references:")[0], re.MULTILINE) == [
        author["name"] for author in PROJECT["authors"]
    ]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_named_by_commit_and_version(workflow: Path) -> None:
    used = re.findall(r"^ +(?:- )?uses: (?!\./)(.+)$", workflow.read_text(encoding="utf-8"), re.MULTILINE)
    assert [text for text in used if not re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", text)] == []


def test_one_action_has_one_commit() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in WORKFLOWS)
    used = dict.fromkeys(re.findall(r"uses: ([\w.-]+/[\w./-]+)@([0-9a-f]{40})", text))
    assert len({action for action, _ in used}) == len(used)


def test_steps_of_workflows_exist() -> None:
    steps = (ROOT / ".ci" / "steps").read_text(encoding="utf-8")
    for path in (*WORKFLOWS, ROOT / ".ci" / "run"):
        for name in re.findall(r"(?:run: \.ci/steps|^step) (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE):
            assert re.search(rf"^{name}\(\) \{{", steps, re.MULTILINE), f"{path.name}: {name}"


def test_publishing_is_trusted_and_comes_after_the_checks() -> None:
    release = (ROOT / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8")
    assert "id-token: write" in release
    assert not re.search(r"secrets\.|password|token:(?! write)", release)
    assert '.ci/steps release "$TAG"' in release


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The files that name a version, as of a release 1.2.3."""
    (tmp_path / "scvi_lfm").mkdir()
    for name in ("pyproject.toml", "CITATION.cff", "CHANGELOG.md", "scvi_lfm/__init__.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    replace(tmp_path / "scvi_lfm" / "__init__.py", r"^__version__ = .*", '__version__ = "1.2.3"')
    replace(tmp_path / "pyproject.toml", r"^version = .*", 'version = "1.2.3"')
    replace(tmp_path / "CITATION.cff", r"^version: .*", "version: 1.2.3\ndate-released: 2030-01-02")
    replace(tmp_path / "CHANGELOG.md", r"^## \[Unreleased\]", "## [Unreleased]\n\n## [1.2.3] - 2030-01-02")
    return tmp_path


def replace(path: Path, pattern: str, text: str) -> None:
    changed, times = re.subn(pattern, text, path.read_text(encoding="utf-8"), count=1, flags=re.MULTILINE)
    assert times == 1
    path.write_text(changed, encoding="utf-8")


def test_a_release_whose_parts_agree(copy: Path) -> None:
    assert faults(copy, "1.2.3") == []


@pytest.mark.parametrize(
    ("name", "pattern", "text", "fault"),
    [
        ("pyproject.toml", '"1.2.3"', '"1.2.2"', "pyproject.toml: version is 1.2.2"),
        ("scvi_lfm/__init__.py", "1.2.3", "1.2.2", "scvi_lfm/__init__.py: __version__ is 1.2.2"),
        ("CITATION.cff", "version: 1.2.3", "version: 1.2.2", "CITATION.cff: version is 1.2.2"),
        ("CITATION.cff", "2030-01-02", "2030-01-01", "CITATION.cff: date-released is 2030-01-01, and not 2030-01-02"),
        ("CITATION.cff", "^date-released.*", "", "CITATION.cff: date-released is missing, and not 2030-01-02"),
        ("CHANGELOG.md", r" - 2030-01-02", "", "CHANGELOG.md: there is no heading '## [1.2.3] - YYYY-MM-DD'"),
    ],
)
def test_a_release_with_a_fault(copy: Path, name: str, pattern: str, text: str, fault: str) -> None:
    replace(copy / name, pattern, text)
    assert faults(copy, "1.2.3") == [fault]


def test_a_tag_that_is_no_version(copy: Path) -> None:
    assert faults(copy, "latest") == ["'latest' is no version such as 1.2.3 or 1.2.3rc1"]
