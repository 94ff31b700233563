"""What a page of `pl.explorer` carries, read back, and the genes of a set of cells computed from it alone."""

from __future__ import annotations

import base64
import json
import re
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.stats import norm

if TYPE_CHECKING:
    from pathlib import Path

ELEMENT = r'<script type="application/octet-stream" id="lfm-(\w+)">([^<]*)</script>'


@dataclass(frozen=True)
class Page:
    text: str
    header: dict[str, Any]
    arrays: dict[str, Any]

    @property
    def cells(self) -> np.ndarray:
        """(a, A), (n, k)."""
        k = 1 + self.header["n_factors"]
        return np.column_stack([self.arrays[f"cell_{c}"].astype(float) for c in range(k)]) * self.header["cell_scales"]

    @property
    def genes(self) -> np.ndarray:
        """(b, B), (m, k)."""
        return self.arrays["genes"].reshape(self.header["n_genes"], -1).astype(float)

    def cell_covs(self) -> np.ndarray:
        """S_i, (n, k, k)."""
        k = self.cells.shape[1]
        matrices = self.arrays["cell_covs"].reshape(-1, k, k)
        covs = np.repeat(matrices[:1], len(self.cells), axis=0)
        for c, step in enumerate(self.header["cell_cov_steps"]):
            covs = covs + step * self.arrays[f"cell_cov_{c}"].astype(float)[:, None, None] * matrices[c + 1]
        return covs

    def gene_covs(self) -> np.ndarray:
        """T_BB of each gene, (m, r, r)."""
        r, m = self.header["n_factors"], self.header["n_genes"]
        if r == 0:
            return np.zeros((m, 0, 0))
        basis = self.arrays["gene_transform"].reshape(r, -1)
        if self.header["gene_cov"] == "eigenbasis":
            variances = 1 / (
                self.arrays["gene_eigenvalues"] / self.arrays["gene_sigma"].astype(float)[:, None] ** 2 + 1
            )
            inside = np.einsum("jk,kl->jkl", variances, np.eye(basis.shape[1]))
        else:
            spread = np.sqrt(self.arrays["gene_variances"].reshape(m, r).astype(float))
            correlation = np.zeros((m, r, r))
            rows, columns = np.tril_indices(r, -1)
            correlation[:, rows, columns] = self.arrays["gene_correlation"].reshape(m, -1)
            correlation = (correlation + correlation.transpose(0, 2, 1)) / self.header["correlation_steps"] + np.eye(r)
            inside = correlation * spread[:, :, None] * spread[:, None, :]
        return basis @ inside @ basis.T

    def contrast(self, cells: np.ndarray, others: np.ndarray) -> pd.DataFrame:
        """Score, sd and lfsr of every gene, by name, for cells of a boolean mask against others."""
        difference = self.cells[cells].mean(0) - self.cells[others].mean(0)
        covs = self.cell_covs()
        cov = covs[cells].mean(0) / cells.sum() + covs[others].mean(0) / others.sum()
        v = np.column_stack([np.ones(len(self.genes)), self.genes[:, 1:]])
        score = v @ difference
        inner = np.outer(difference[1:], difference[1:]) + cov[1:, 1:]
        sd = np.sqrt(((v @ cov) * v).sum(1) + np.einsum("jkl,kl->j", self.gene_covs(), inner))
        table = {"scores": score, "sd": sd, "lfsr": norm.sf(np.abs(score) / sd)}
        return pd.DataFrame(table, index=self.arrays["gene_names"])


def read_page(path: Path) -> Page:
    text = path.read_text(encoding="utf-8")
    content = {name: zlib.decompress(base64.b64decode(body)) for name, body in re.findall(ELEMENT, text)}
    header = json.loads(content.pop("header"))
    arrays = {name: _read(content[name], kind) for name, kind in header["arrays"].items()}
    return Page(text, header, arrays)


def _read(content: bytes, kind: str) -> Any:
    if kind == "json":
        return json.loads(content)
    in_order = np.frombuffer(content, np.uint8).reshape(int(kind[1]), -1).T.tobytes()
    return np.frombuffer(in_order, f"<{kind}")
