"""Arguments and values of `tl.fit`: what is wrong with them, and what is taken where none are given."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from .._validate import check_choice, check_count, check_positive
from ..data._checks import all_integers, describe_empty, is_constant

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..data import CellMatrix

WHOLE_BATCH, BATCH = 4096, 2048
PYRO_STEPS = 6000


def check_engine_options(engine: str, guide: object, learning_rate: object, guides: Sequence[str]) -> None:
    """Raise unless the options of the Pyro engine fit it, and come with it."""
    if engine != "pyro":
        for name, value in (("guide", guide), ("learning_rate", learning_rate)):
            if value is not None:
                msg = f"`{name}` belongs to engine='pyro', and engine is {engine!r}. Leave it out, or pass the engine."
                raise ValueError(msg)
    if guide is not None:
        check_choice("guide", guide, guides)
    if learning_rate is not None:
        check_positive("learning_rate", learning_rate)


def check_shape(n_factors: int, n_cells: int, n_genes: int) -> None:
    """Raise unless that many factors can be fitted to that many cells and genes."""
    if min(n_cells, n_genes) < 2:
        msg = f"There are {n_cells} cell(s) and {n_genes} gene(s) to fit; a fit needs at least two of each."
        raise ValueError(msg)
    if n_factors > min(n_cells, n_genes):
        msg = (
            f"`n_factors` is {n_factors}, but {n_cells} cells x {n_genes} genes to fit allow at most "
            f"{min(n_cells, n_genes)}. Pass n_factors={min(n_cells, n_genes)} or less."
        )
        raise ValueError(msg)


def choose_batch_size(batch_size: int | None, n_cells: int, n_factors: int) -> int:
    """Cells in a minibatch, at least as many as there are factors."""
    if batch_size is None:
        size = n_cells if n_cells <= WHOLE_BATCH else BATCH
    else:
        size = min(check_count("batch_size", batch_size, minimum=2), n_cells)
    smallest = n_cells // -(-n_cells // size)
    if smallest < n_factors:
        msg = (
            f"`batch_size` {size} splits {n_cells} cells into batches of {smallest} or more, too few for {n_factors} "
            "factors. Pass a larger batch_size."
        )
        raise ValueError(msg)
    return size


def choose_max_epochs(max_epochs: int | None, engine: str, n_batches: int) -> int:
    """Passes over the cells at the most."""
    if max_epochs is not None:
        return check_count("max_epochs", max_epochs)
    if engine == "pyro":
        return -(-PYRO_STEPS // n_batches)
    return 100 if n_batches == 1 else 20


def warn_about_counts(matrix: CellMatrix, layer: str | None, *, stacklevel: int = 3) -> None:
    """Warn if every value is a whole number."""
    if all_integers(matrix.values):
        msg = (
            f"{'X' if layer is None else f'layers[{layer!r}]'} holds whole numbers, and the Normal likelihood is made "
            "for log-normalised values. If they are counts, call sc.pp.normalize_total(adata) and sc.pp.log1p(adata) "
            "first."
        )
        warnings.warn(msg, UserWarning, stacklevel=stacklevel)


def check_values(matrix: CellMatrix, layer: str | None) -> None:
    """Raise if there is nothing to fit; warn about counts, and about cells and genes without a value."""
    where = "X" if layer is None else f"layers[{layer!r}]"
    if is_constant(matrix.values):
        msg = f"Every value of {where} is the same: there is nothing to fit."
        raise ValueError(msg)
    warn_about_counts(matrix, layer, stacklevel=4)
    empty_cells, empty_genes = describe_empty(matrix.values)
    if empty_cells:
        msg = f"{empty_cells} cell(s) of {where} are all zero; they are fitted and get the embedding of an empty cell."
        warnings.warn(msg, UserWarning, stacklevel=3)
    if empty_genes:
        msg = f"{empty_genes} gene(s) of {where} are all zero; they are fitted and get B near zero and the lowest b."
        warnings.warn(msg, UserWarning, stacklevel=3)
