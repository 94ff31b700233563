"""What a fit would be, as a record that prints as a table."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from .._memory import words_of_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Plan:
    """What :func:`scvi_lfm.plan` expects of a fit: print it, or show it in a notebook, for a table.

    Attributes
    ----------
    n_cells
        Cells to fit.
    n_genes
        Genes to fit.
    n_stored
        Values that are stored of them; of some sources an estimate.
    n_factors
        Number of factors, the most to choose from with `n_factors="auto"`.
    likelihood
        The one asked for, or what `"auto"` stands for, judged by `n_judged` cells.
    n_judged
        Cells that were read for the plan.
    engine
        Steps that fit: `"normal"` (one covariance serves all cells), `"observed"` (every cell and gene has its own),
        `"counts"` or `"pyro"`.
    values
        Where the values lie: `"memory"`, `"file"` or `"dask"`.
    read_in
        Whether values that are not in memory are read in once, because they take little; else they are read as often
        as `readings` says.
    batch_size
        Cells in a minibatch.
    n_batches
        Minibatches in an epoch.
    keeps_covariances
        Whether the covariance of each cell is held and stored, see `settings.max_cov_bytes`; None where one serves all.
    device
        Where it is computed.
    epochs
        Passes over the cells until it has converged, a guess.
    readings
        How often all values are read: `"check"` (none, where the fit checks what it reads), `"start"`, `"epoch"`
        (each) and `"finish"`. Numbers below one are of some of the cells.
    parts
        Bytes of main memory beyond what is held already, by what they are for.
    host_bytes
        Their peak.
    held_bytes
        Of the values that are in memory already.
    available_bytes
        Main memory that is left; None where the system does not say.
    device_bytes
        Peak on the GPU; 0 on the CPU.
    seconds
        Estimate from a fit of a few cells; None for Pyro.
    """

    n_cells: int
    n_genes: int
    n_stored: int
    n_factors: int
    likelihood: str
    n_judged: int
    engine: str
    values: str
    read_in: bool
    batch_size: int
    n_batches: int
    keeps_covariances: bool | None
    device: str
    epochs: float
    readings: Mapping[str, float]
    parts: Mapping[str, int]
    host_bytes: int
    held_bytes: int
    available_bytes: int | None
    device_bytes: int
    seconds: float | None

    @property
    def fits(self) -> bool | None:
        """Whether the memory that is left is enough; None where it is not known."""
        return None if self.available_bytes is None else self.host_bytes <= self.available_bytes

    @property
    def n_readings(self) -> float:
        """Number of times that all values are read."""
        return sum(self.readings.values()) + (self.epochs - 1) * self.readings["epoch"]

    def rows(self) -> list[tuple[str, str]]:
        """The table, line by line."""
        share = self.n_stored / max(self.n_cells * self.n_genes, 1)
        judged = "" if self.n_judged == self.n_cells else f", judged by {self.n_judged:,} cells"
        lines = [
            ("data", f"{self.n_cells:,} cells x {self.n_genes:,} genes, {self.n_stored:,} values ({share:.1%})"),
            ("values lie", _PLACES[self.values] + (", read in once" if self.read_in else "")),
            ("likelihood", f"{self.likelihood}{judged}"),
            ("steps", _STEPS[self.engine]),
            ("factors", f"{self.n_factors}"),
            ("minibatches", f"{self.n_batches:,} of {self.batch_size:,} cells" if self.n_batches > 1 else "all cells"),
            ("device", self.device),
        ]
        if self.keeps_covariances is not None:
            kept = "kept" if self.keeps_covariances else "computed when needed (settings.max_cov_bytes)"
            lines.append(("cells' covariances", kept))
        each = ", ".join(
            f"{number:.2g} {'each epoch' if name == 'epoch' else f'to {name}'}"
            for name, number in self.readings.items()
        )
        lines.append(("readings", f"about {self.n_readings:.2g} of all values: {each}"))
        left = "" if self.available_bytes is None else f", {words_of_bytes(self.available_bytes)} are left"
        held = f" beyond {words_of_bytes(self.held_bytes)} of values" if self.held_bytes else ""
        lines.append(("memory", f"about {words_of_bytes(self.host_bytes)}{held}{left}"))
        lines += [
            (f"  {name}", words_of_bytes(size)) for name, size in self.parts.items() if size >= self.host_bytes / 100
        ]
        if self.device_bytes:
            lines.append(("device memory", f"about {words_of_bytes(self.device_bytes)}"))
        took = "not estimated" if self.seconds is None else f"about {_words_of_seconds(self.seconds)}"
        return [*lines, ("time", f"{took}, with {self.epochs:.2g} epochs")]

    def __str__(self) -> str:
        lines = self.rows()
        width = max(len(name) for name, _ in lines)
        return "\n".join(f"{name:<{width}}  {text}" for name, text in lines)

    def _repr_html_(self) -> str:
        cells = (
            f'<tr><th style="text-align:left">{escape(name).replace("  ", "&emsp;")}</th>'
            f'<td style="text-align:left">{escape(text)}</td></tr>'
            for name, text in self.rows()
        )
        return f"<table>{''.join(cells)}</table>"


_PLACES = {"memory": "in memory", "file": "in a file", "dask": "in a dask array"}
_STEPS = {
    "normal": "closed form, one covariance for all cells",
    "observed": "closed form, a covariance for each cell and gene",
    "counts": "Fisher weights, a covariance for each cell and gene",
    "pyro": "stochastic gradients through Pyro",
}


def _words_of_seconds(seconds: float) -> str:
    size, unit = next(((size, unit) for size, unit in ((3600, "h"), (60, "min")) if seconds >= 2 * size), (1, "s"))
    number = seconds / size
    return f"{number:.0f} {unit}" if number >= 10 else f"{number:.2g} {unit}"
