"""What the pages tell readers to paste works when pasted, and so do examples that no other test runs."""

from __future__ import annotations

import doctest
import re
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pytest

import scvi_lfm as lfm

if TYPE_CHECKING:
    import anndata as ad

DOCS = Path(__file__).parents[1] / "docs"
PAGES = [
    "index.md",
    "coming_from.md",
    "faq.md",
    *(f"guide/{page.name}" for page in sorted((DOCS / "guide").glob("*.md"))),
]
NAMED = ["CD79A", "MS4A1", "NKG7", "GNLY", "LYZ", "CD3D"]


def sections(text: str) -> list[str]:
    """A page from heading to heading: a reader may begin with any, from a fitted AnnData."""
    return re.split(r"^(?=##+ )", text, flags=re.MULTILINE)


def snippets(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def fitted() -> ad.AnnData:
    """A quarter of the shipped cells and their most abundant genes, for the fit that the guide begins with."""
    adata = lfm.datasets.pbmc_sorted()
    abundant = adata.var_names[np.argsort(-np.asarray(adata.X.sum(0)).ravel())[:80]]
    adata = adata[::4, adata.var_names.isin([*abundant, *NAMED])].copy()
    adata.obs["batch"] = np.where(np.arange(adata.n_obs) % 2, "first", "second")
    adata.obs["donor"] = [f"donor_{number % 4}" for number in range(adata.n_obs)]
    adata.var["highly_variable"] = np.arange(adata.n_vars) % 2 == 0
    lfm.tl.fit(adata, 5, progress=False)
    return adata


# those that fit all shipped cells, or choose the number of factors
SLOW = {"index.md", "guide/index.md", "guide/factors.md", "guide/missing.md", "faq.md"}


@pytest.mark.parametrize("page", [pytest.param(page, marks=[pytest.mark.slow] * (page in SLOW)) for page in PAGES])
def test_snippets_run(
    page: str,
    fitted: ad.AnnData,
    settings: object,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings.progress = False
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plt, "show", lambda: None)
    fitted.write_h5ad("cells.h5ad")
    for section in sections((DOCS / page).read_text(encoding="utf-8")):
        names = {"lfm": lfm, "adata": fitted.copy()}
        for number, snippet in enumerate(snippets(section)):
            where = f"{page}, {section.splitlines()[0]!r}, {number}"
            exec(compile(snippet, where, "exec"), names)
        plt.close("all")


@pytest.mark.parametrize(
    "call", [lfm.plan, lfm.model.model, lfm.model.guide, lfm.model.mean_field_guide], ids=lambda call: call.__name__
)
def test_examples_run(call) -> None:
    """Those of `tl`, `get`, `pl` and `datasets` run with the rules for their docstrings."""
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for example in doctest.DocTestFinder(recurse=False).find(call, call.__name__, globs={}):
        runner.run(example)
    assert runner.tries > 0
    assert runner.failures == 0
