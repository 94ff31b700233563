"""Size of an explorer page and time of a lasso, by number of cells: python tests/benchmarks/explorer.py [CELLS ...]

Cells are drawn from the population of a fit to simulated values, 30 factors and 5,000 genes. Times are by the page's
own clock, from the end of the lasso until the table of genes is laid out, in a headless Chromium without a GPU. Beside
them stands the processor time, which other programs on the machine do not lengthen.
"""

from __future__ import annotations

import re
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd

import scvi_lfm as lfm

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
from chromium import browser, missing, show

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

N_GENES, N_FACTORS, N_LASSOS = 5_000, 30, 15
LASSOS = """
const [x, y] = app.header.axes;
const middle = (axis) => (axis.low + axis.high) / 2;
const answers = [];
for (let k = 1; k <= arguments[0]; k++) {
  const radius = ((x.high - x.low) / 2) * (k / arguments[0]);
  const circle = Array.from({ length: 40 }, (_, i) => [
    middle(x) + radius * Math.cos((i / 20) * Math.PI),
    middle(y) + radius * Math.sin((i / 20) * Math.PI),
  ]);
  answers.push(app.lasso(circle));
}
return answers;
"""


def fitted(likelihood: str) -> ad.AnnData:
    """A fit, from whose population cells are drawn."""
    adata = lfm.datasets.simulate(3_000, N_GENES, N_FACTORS, likelihood=likelihood)
    lfm.tl.fit(adata, N_FACTORS, likelihood=likelihood, progress=False, max_epochs=5)
    return adata


def drawn(fit: ad.AnnData, n: int) -> ad.AnnData:
    """Cells with the covariances of those fitted, and means from their population."""
    rng = np.random.default_rng(0)
    stored = fit.uns["lfm"]
    rows = rng.multivariate_normal(stored["prior_cell_mean"], stored["prior_cell_cov"], n).astype(np.float32)
    like = rng.integers(fit.n_obs, size=n)
    adata = ad.AnnData(obs=fit.obs.iloc[like].reset_index(drop=True), var=fit.var, uns=fit.uns, varm=dict(fit.varm))
    adata.obs_names = [f"{k:016x}-1" for k in rng.integers(2**62, size=n)]
    adata.obs["lfm_a"] = rows[:, 0]
    for key in ("X_lfm", "X_lfm_sd", "lfm_cov"):
        if key in fit.obsm:
            adata.obsm[key] = fit.obsm[key][like]
    adata.obsm["X_lfm"] = rows[:, 1:]
    adata.obsm["X_umap"] = rows[:, 1:3] + rng.normal(size=(n, 2)).astype(np.float32)
    adata.obs["group"] = pd.Categorical(rng.choice(list("ABCDEFGH"), n))
    return adata


def measure(adata: ad.AnnData, folder: Path) -> str:
    """One line of figures."""
    start = time.process_time()
    page = lfm.pl.explorer(adata, folder / "explorer.html", color="group")
    seconds = time.process_time() - start
    embedding = sum(map(len, re.findall(r'id="lfm-cell_\d+">([^<]*)<', page.path.read_text())))
    with browser(folder) as driver:
        start = time.perf_counter()
        show(driver, page.path)
        opened = time.perf_counter() - start
        driver.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
        before = processor_of(driver)
        answers = driver.execute_script(LASSOS, N_LASSOS)
        processor = (processor_of(driver) - before) / N_LASSOS
    times = [answer["milliseconds"] for answer in answers]
    return (
        f"{adata.n_obs:9,} cells: page {page.n_bytes / 1e6:5.1f} MB, of which embedding {embedding / 1e6:5.1f} MB; "
        f"written in {seconds:4.1f} s (processor), shown in {opened:4.1f} s; {N_LASSOS} lassos of "
        f"{answers[0]['cells']:,} to {answers[-1]['cells']:,} cells: median {np.median(times):.0f} ms, "
        f"longest {max(times):.0f} ms; processor {1000 * processor:.0f} ms a lasso"
    )


def processor_of(driver: Chrome) -> float:
    """Seconds of processor that the page's thread took."""
    metrics = driver.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
    return next(metric["value"] for metric in metrics if metric["name"] == "ThreadTime")


def main() -> None:
    """Measure each number of cells, under both likelihoods."""
    if reason := missing():
        sys.exit(reason)
    for likelihood in ("normal", "negative_binomial"):
        fit = fitted(likelihood)
        for n in map(int, sys.argv[1:] or ["20000", "200000"]):
            with tempfile.TemporaryDirectory() as folder:
                print(f"{likelihood:18}", measure(drawn(fit, n), Path(folder)), flush=True)


if __name__ == "__main__":
    main()
