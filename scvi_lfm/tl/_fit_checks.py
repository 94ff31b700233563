"""Arguments and values of `tl.fit`: what is wrong with them, and what is taken where none are given."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .._calls import warn_user
from .._fit_arguments import ARGUMENTS, DEFAULTS, FAMILIES, Argument, FitArguments
from .._validate import check_choice, check_count, check_positive, place_of
from ..data import numbers_of_levels
from ..model.likelihoods import CONTINUOUS, COUNTS

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from ..data import CellMatrix
    from ..data.kind import ValueKind

WHOLE_BATCH, BATCH = 4096, 2048
COUNT_BATCH = 512
# a pass over counts costs by the square of their number
MOST_FACTORS, MOST_FACTORS_OF_COUNTS = 50, 30
PYRO_STEPS = 6000
MOST_LEVELS = 50
GUIDES = (*FAMILIES, "low_rank", "flow")
LEARNING_RATE = 0.02


def checked(given: FitArguments) -> FitArguments:
    """The arguments with numbers as Python has them; one that is wrong by itself raises."""
    return replace(given, **{name: _checked(name, getattr(given, name), known) for name, known in ARGUMENTS.items()})


def _checked(name: str, value: Any, known: Argument) -> Any:
    if (value is None and DEFAULTS[name] is None) or (isinstance(value, str) and value in known.words):
        return value
    if known.choices:
        check_choice(name, value, known.choices)
    if known.minimum is not None:
        return check_count(name, value, minimum=known.minimum, words=known.words)
    return known.number(check_positive(name, value)) if known.positive else value


def check_engine_options(given: FitArguments) -> None:
    """Raise unless options of one engine come with it, and a guide is one."""
    for name, known in ARGUMENTS.items():
        if known.only and known.only[0] == "engine" and not known.belongs(given) and getattr(given, name) is not None:
            (engine,) = known.only[1]
            msg = f"`{name}` belongs to {engine=}, and engine is {given.engine!r}. Leave it out, or pass the engine."
            raise ValueError(msg)
    if given.guide is not None and not callable(given.guide):
        check_choice("guide", given.guide, GUIDES)


def check_noise(noise: str, engine: str, scales: Mapping[str, object]) -> None:
    """Raise if noise that differs by cell was asked for where it cannot be learned."""
    if noise != "cell_gene":
        return
    if engine == "pyro":
        msg = "`noise`='cell_gene' belongs to engine='natural_gradient', found engine='pyro'. Leave engine out."
        raise ValueError(msg)
    if "sigma" in scales:
        msg = (
            "`prior_scales['sigma']` fixes the noise that `noise`='cell_gene' is to learn for every cell and gene. "
            "Leave one of the two out."
        )
        raise ValueError(msg)


def check_takes_covariates(covariates: object, engine: str, noise: str) -> None:
    """Raise if covariates were given to a fit that has no place for them."""
    if covariates is None:
        return
    for name, value, serves in (("engine", engine, ("natural_gradient",)), ("noise", noise, ("shared", "gene"))):
        if value not in serves:
            words = " or ".join(f"{name}={choice!r}" for choice in serves)
            msg = f"`covariates` need {words}, found {name}={value!r}. Leave out `covariates`, or change `{name}`."
            raise ValueError(msg)


def warn_about_codes(obs: pd.DataFrame, coding: pd.DataFrame) -> None:
    """Warn about covariates that are numbers of levels, such as batches, and get one slope."""
    for name in numbers_of_levels(obs, coding):
        levels = np.unique(np.asarray(obs[name], dtype=np.float64))
        msg = (
            f"`covariates`: obs[{name!r}] holds {len(levels)} whole numbers ({levels[0]:g} to {levels[-1]:g}) and is "
            "fitted as a quantity, with one slope for each gene. If they number batches or other levels, call "
            f'adata.obs["{name}"] = adata.obs["{name}"].astype("category") first.'
        )
        warn_user(msg)


def check_guide_of_normal(guide: object, likelihood: str) -> None:
    """Raise if a guide was asked for that a continuous likelihood has no use for."""
    if guide is not None and guide not in FAMILIES:
        why = "" if likelihood != "normal" else ", under which the best q of a row is a Normal, as in 'row_block'"
        msg = (
            f"`guide` must be one of {', '.join(map(repr, FAMILIES))}, found {guide!r} with likelihood={likelihood!r}"
            f"{why}. Other guides are for counts."
        )
        raise ValueError(msg)


def check_auto(engine: str, scales: Mapping[str, Any]) -> None:
    """Raise if n_factors='auto' was asked for where factors have no order, or the engine does not choose."""
    if engine == "pyro":
        msg = "n_factors='auto' belongs to engine='natural_gradient', found engine='pyro'. Pass a number of factors."
        raise ValueError(msg)
    if "B" in scales or np.ndim(scales.get("A", 1.0)) > 0:
        msg = (
            "n_factors='auto' goes with learned scales of B and one scale of A, found prior_scales with "
            f"{'B' if 'B' in scales else 'one A for each factor'!r}. Leave it out, or pass a number of factors."
        )
        raise ValueError(msg)


def most_factors(n_cells: int, n_genes: int, batch_size: int, *, counts: bool) -> int:
    """Factors that n_factors='auto' starts from: few enough for a batch, and for their number to be told."""
    smallest = n_cells // -(-n_cells // batch_size)
    return max(1, min(MOST_FACTORS_OF_COUNTS if counts else MOST_FACTORS, smallest // 2, n_genes // 2))


def check_shape(n_factors: int, n_cells: int, n_genes: int) -> None:
    """Raise unless that many factors can be fitted to that many cells and genes."""
    if min(n_cells, n_genes) < 2:
        msg = (
            f"There are {n_cells} cell(s) and {n_genes} gene(s) to fit; a fit needs at least two of each. "
            "`mask_var` says which genes are fitted: all without it."
        )
        raise ValueError(msg)
    if n_factors > min(n_cells, n_genes):
        msg = (
            f"`n_factors` is {n_factors}, but {n_cells} cells x {n_genes} genes to fit allow at most "
            f"{min(n_cells, n_genes)}. Pass n_factors={min(n_cells, n_genes)} or less."
        )
        raise ValueError(msg)


def choose_batch_size(batch_size: int | None, n_cells: int, n_factors: int, *, counts: bool) -> int:
    """Cells in a minibatch, at least as many as there are factors."""
    if batch_size is None and counts:
        size = min(max(COUNT_BATCH, n_factors), n_cells)
    elif batch_size is None:
        size = n_cells if n_cells <= WHOLE_BATCH else BATCH
    else:
        size = min(batch_size, n_cells)
    smallest = n_cells // -(-n_cells // size)
    if smallest < n_factors:
        msg = (
            f"`batch_size` {size} splits {n_cells} cells into batches of {smallest} or more, too few for {n_factors} "
            "factors. Pass a larger batch_size."
        )
        raise ValueError(msg)
    return size


def choose_max_epochs(max_epochs: float | None, engine: str, n_batches: int) -> float:
    """Readings of all cells at the most."""
    if max_epochs is not None:
        return math.ceil(max_epochs) if n_batches == 1 else max_epochs
    if engine == "pyro":
        return -(-PYRO_STEPS // n_batches)
    return 100 if n_batches == 1 else 20


def choose_likelihood(likelihood: str, kind: ValueKind, *, never_counts: bool = False) -> str:
    """The likelihood asked for; where the choice is left open, the one that the values call for.

    Whole numbers are `never_counts` where only stored entries are data, as of ratings, or logarithms are.
    """
    if likelihood != "auto":
        return likelihood
    if never_counts:
        return "normal"
    return "negative_binomial" if kind.n_present > 0 and kind.may_be_counts else "normal"


def check_options_of_likelihood(
    likelihood: str, engine: str, noise: str, scales: Mapping[str, object], size_factors: object
) -> None:
    """Raise if an option was given that the likelihood does not have, or its engine was not."""
    if likelihood == "student_t" and engine != "pyro":
        msg = (
            f"`likelihood`='student_t' is fitted by engine='pyro', found engine={engine!r}. Pass engine='pyro', or "
            "likelihood='normal' for closed-form steps."
        )
        raise ValueError(msg)
    if likelihood not in COUNTS and size_factors is not None:
        msg = f"`size_factors` belong to count likelihoods, and the values are fitted with {likelihood=}."
        raise ValueError(msg)
    if likelihood in CONTINUOUS:
        return
    if likelihood == "ordinal" and engine == "pyro":
        msg = "`likelihood`='ordinal' is fitted by engine='natural_gradient', found engine='pyro'. Leave engine out."
        raise ValueError(msg)
    if noise != "shared":
        msg = (
            f"`noise` belongs to likelihood='normal', found noise={noise!r} with likelihood={likelihood!r}. "
            "Leave it out: the negative binomial learns a dispersion for each gene."
        )
        raise ValueError(msg)
    if "sigma" in scales:
        msg = f"`prior_scales['sigma']` belongs to likelihood='normal'; likelihood={likelihood!r} has no sigma."
        raise ValueError(msg)


def check_levels(kind: ValueKind, layer: str | None) -> tuple[float, float]:
    """The lowest and the highest level of whole numbers, which must be few."""
    n_levels = int(kind.maximum - kind.minimum) + 1
    if n_levels > MOST_LEVELS:
        msg = (
            f"likelihood='ordinal' is for at most {MOST_LEVELS} levels, as those of ratings, and {place_of(layer)} "
            f"holds whole numbers from {kind.minimum:g} to {kind.maximum:g}. Pass likelihood='negative_binomial' for "
            "counts, or merge levels first."
        )
        raise ValueError(msg)
    return kind.minimum, kind.maximum


def check_variation(matrix: CellMatrix, layer: str | None, *, stored_only: bool) -> None:
    """Raise if every value is the same; with `stored_only`, those that a sparse matrix does not store are none."""
    found = matrix.summary
    if found.stored_minimum == found.stored_maximum if stored_only else found.is_constant:
        what = "observed value" if stored_only else "value"
        msg = f"Every {what} of {place_of(layer)} is the same: there is nothing to fit."
        raise ValueError(msg)


def warn_about_empty(matrix: CellMatrix, layer: str | None, *, continuous: bool) -> None:
    """Warn about genes, and of `continuous` values cells, without a value other than zero."""
    found = matrix.summary
    empty = {"gene": (found.empty_genes, "B near zero and the lowest b")}
    if continuous:  # size factors refuse cells without counts
        empty = {"cell": (found.empty_cells, "the embedding of an empty cell")} | empty
    for what, (rows, outcome) in empty.items():
        if rows.any():
            msg = f"{rows.sum()} {what}(s) of {place_of(layer)} are all zero; they are fitted and get {outcome}."
            warn_user(msg)
