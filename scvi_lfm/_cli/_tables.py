"""Tables as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def _rate(value: float) -> str:
    # the tails of a variational posterior carry no more than this
    return "<1e-06" if value < 1e-6 else f"{value:.1e}"


def _expected_count(value: float) -> str:
    # mostly below one
    return "<0.001" if value < 1e-3 else f"{value:.3f}"


_FORMATS = {
    "scores": "{:.3f}".format,
    "sd": "{:.3f}".format,
    "lfsr": _rate,
    "logfoldchanges": "{:.2f}".format,
    "y": "{:.2f}".format,
    "expected": "{:.2f}".format,
    "q": _rate,
    "log_ratio": "{:.1f}".format,
    "lfdr": "{:.3f}".format,
}


_COUNT_FORMATS = {"y": "{:.0f}".format, "expected": _expected_count}


def as_text(table: pd.DataFrame) -> str:
    """Columns side by side: words begin below each other, numbers have the digits that mean something."""
    header, formats = [], {}
    counts = "y" in table and bool((table["y"] == table["y"].round()).all())
    known = _FORMATS | _COUNT_FORMATS if counts else _FORMATS
    for name in table:
        if name in known:
            header.append(name)
            formats[name] = known[name]
        else:
            width = max(len(name), *table[name].astype(str).str.len(), 0)
            header.append(name.ljust(width))
            formats[name] = f"{{:<{width}}}".format
    return table.to_string(index=False, header=header, formatters=formats)


def rank_genes_text(table: pd.DataFrame, n_top: int) -> str:
    """The first genes of each group."""
    columns = ["group", "names", "scores", "sd", "lfsr", "logfoldchanges"]
    top = table.groupby("group", observed=True, sort=False).head(n_top)
    return as_text(top[columns].astype({"group": str}))


def anomalies_text(table: pd.DataFrame, n_top: int) -> str:
    """The first entries."""
    columns = ["cell", "gene", "y", "expected", "q", "log_ratio", "lfdr", "direction"]
    return as_text(table[columns].head(n_top))
