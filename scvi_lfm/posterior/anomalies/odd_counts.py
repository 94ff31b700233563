"""Large counts that are hardly their own cells', found one by one, and the posterior without them.

What is odd pulls the fit: a burst of molecules raises what its cell and its gene expect, and a count that came from
another cell makes the next one of its kind look at home. Counts are therefore taken out of the posterior to the extent
that they are odd, and judged anew, a few times.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import torch

from ..leave_many_out import eta_without, without
from ..shares_left_out import SharesLeftOut
from .gross_errors import fit_gross_errors, most_likely_burst
from .other_cells import OwnAndOther
from .share import fit_share, ratio_histogram

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from ..dense_blocks import DenseBlock, DenseBlocks
    from ..posterior import Posterior
    from .gross_errors import GrossErrors

ROUNDS = 3
# nats by which another explanation must be better than the own cell's before a count is looked at
LEAST_EVIDENCE = 3.0
# a count that is odd with less than this probability stays as it is
LEAST_ODD = 1e-3


@dataclass(frozen=True)
class WithoutOdd:
    """A posterior, the counts that were taken out of it, and what odd counts are like.

    All but the first are None where the likelihood has no room for large counts.
    """

    posterior: Posterior
    taken: SharesLeftOut | None = None
    gross: GrossErrors | None = None
    share: float | None = None  # of entries that come from other cells


@dataclass(frozen=True)
class _Candidates:
    cell: Tensor  # (k,): position
    gene: Tensor  # (k,): position
    y: Tensor  # (k,)
    other: Tensor  # (k,): log density by other cells


def without_odd_counts(q: Posterior, blocks: DenseBlocks) -> WithoutOdd:
    """The posterior without the odd ones among the counts of all cells, which are read once."""
    if not q.likelihood.has_rate or q.likelihood.maximum is not None:
        return WithoutOdd(q)
    found, share, n_molecules = _candidates(q, blocks)
    cleaned, taken = q, SharesLeftOut.none(found.cell, found.gene)
    for left in reversed(range(ROUNDS + 1)):
        own = q.law(eta_without(cleaned, found.y, taken), found.cell, found.gene)
        gross, odd = fit_gross_errors(own.log_density(found.y), found.other, found.y, own.mean(), share, n_molecules)
        if left:
            taken = replace(taken, share=torch.where(odd > LEAST_ODD, odd, 0.0).to(found.y))
            cleaned, taken = without(q, found.y, taken)
    return WithoutOdd(cleaned, taken.where(taken.share > 0), gross, share)


_Found = tuple["_Candidates", "Tensor", float]


def _candidates(q: Posterior, blocks: DenseBlocks) -> tuple[_Candidates, float, float]:
    """Counts that have a better explanation than their own cell, the share of other cells, the number of molecules."""
    laws = OwnAndOther(q, blocks)

    def of_block(block: DenseBlock) -> _Found:
        y = block.values()
        own, others = laws(y, block.posterior, None)
        log_ratio = others.log_zero().sub_(own.log_zero())
        at = torch.nonzero(y, as_tuple=True)
        count, here = y[at], own.at(at)
        by_own, by_others = here.log_density(count), others.at(at).log_density(count)
        log_ratio[at] = (by_others - by_own).to(log_ratio)
        best = torch.maximum(by_others, most_likely_burst(count, here.mean()).to(by_others))
        some = (count > here.mean()) & (best > by_own + LEAST_EVIDENCE)
        found = _Candidates(at[0][some] + block.start, at[1][some], count[some], by_others[some])
        return found, ratio_histogram(log_ratio, block.observed()), float(y.sum(dtype=torch.float64))

    found, ratios, n_molecules = _joined(blocks.each(of_block, q, pool=_joined))
    return found, fit_share(ratios), max(n_molecules, 1.0)


def _joined(parts: Iterable[_Found], _: int = 0) -> _Found:
    """What is found in several blocks, in order."""
    found, ratios, n_molecules = next(parts := iter(parts))
    every = [found]
    for found, counted, total in parts:
        every.append(found)
        ratios = ratios + counted
        n_molecules += total
    columns = ([getattr(part, field.name) for part in every] for field in fields(_Candidates))
    return _Candidates(*(torch.cat(values) for values in columns)), ratios, n_molecules
