"""The entries to list and the scores of cells and genes, from one reading of all cells.

At which distance an entry passes is known once all distances are; until then whatever may pass is held. On a cluster,
where that would travel, all distances are counted first, in a reading of their own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, cast

import torch

from ..tally import added, tally
from .share import evidence, from_others, least_log_ratio
from .thresholds import Distances

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Self

    from torch import Tensor

    from ...model.likelihoods.base import InFamily
    from ..dense_blocks import DenseBlock, DenseBlocks
    from .odd_counts import WithoutOdd
    from .scan import Scan
    from .thresholds import Scores

# a p leaves out half the probability of the value itself at most, and so orders entries otherwise than distances do
SLACK = math.log(2)


@dataclass(frozen=True)
class Entries:
    """Entries with their scores, (k,) each."""

    cell: Tensor  # position
    gene: Tensor  # position
    y: Tensor
    expected: Tensor
    distance: Tensor
    log_ratio: Tensor
    own: InFamily

    def __len__(self) -> int:
        return len(self.cell)

    def at(self, index: Tensor) -> Self:
        """Entries at some positions, or of a mask."""
        columns = {name: getattr(self, name)[index] for name in _COLUMNS}
        return replace(self, own=self.own.at(index), **columns)

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Entries of several parts, in order."""
        columns = {name: torch.cat([getattr(part, name) for part in parts]) for name in _COLUMNS}
        laws = [part.own for part in parts]
        # a parameter that is no column is common to all entries
        parameters = (
            torch.cat(values) if values[0].ndim else values[0]
            for values in zip(*(law.parameters for law in laws), strict=True)
        )
        own = replace(laws[0], seen=torch.cat([law.seen for law in laws]), parameters=tuple(parameters))
        return cls(**columns, own=own)


_COLUMNS = tuple(field.name for field in fields(Entries) if field.name != "own")


@dataclass(frozen=True)
class Question:
    """Question by which entries are listed, as the arguments of `tl.anomalies`."""

    by: str  # "lfdr", "q" or "either"
    fdr: float
    max_entries: int
    share: float  # of entries that come from other cells


@dataclass(frozen=True)
class Listing:
    """The entries that are listed, and the scores of cells and genes."""

    entries: dict[str, Tensor]  # columns: cell, gene, y, expected, p, q, log_ratio, lfdr; in the order of cells
    cell_score: Tensor  # (n,)
    gene_score: Tensor  # (m,)
    depth: Tensor  # (n,): genes detected
    n_by_tail: int
    n_by_ratio: int


@dataclass(frozen=True)
class _Part:
    """Entries and scores that some cells bring."""

    counts: Tensor  # (bins,): entries by distance
    n_entries: int
    n_by_ratio: int
    held: Entries  # those that may be listed
    cell_score: Tensor
    gene_score: Tensor
    depth: Tensor


def list_entries(
    scan: Scan, cleaned: WithoutOdd, blocks: DenseBlocks, question: Question, *, total: int, zero: float = 0.0
) -> Listing:
    """Score all cells, and list the entries that pass.

    Parameters
    ----------
    scan
        Of the posterior.
    cleaned
        The posterior under which cells are scored.
    blocks
        All cells.
    question
        What entries are listed by.
    total
        Number of entries that are data.
    zero
        The value that is no detection.
    """
    uncounted = torch.zeros(scan.distance_bins, dtype=torch.int64, device=scan.device)
    distances = Distances(uncounted, scan.distance_max, scan.tail, total, total)
    if blocks.on_cluster and question.by != "lfdr":
        counts = added(blocks.each(partial(_counts_of, scan), cleaned.posterior, cleaned.taken, pool=added))
        distances = replace(distances, counts=counts, n_left=0)
    min_ratio = least_log_ratio(question.share, question.fdr, scan.device)
    min_distance = distances.least(question.fdr, certain=False)
    score = partial(_score, scan, question, min_ratio, min_distance, zero)
    pool = partial(_joined, question, distances, min_ratio)
    found = pool(blocks.each(score, cleaned.posterior, cleaned.taken, pool=pool))

    distances, listed = replace(distances, counts=found.counts, n_left=0), found.held
    rows = {name: getattr(listed, name) for name in ("cell", "gene", "y", "expected")}
    rows["p"] = scan.p_of(listed.y, listed.distance, listed.own)
    rows["q"], rows["log_ratio"] = distances.q_of(listed.distance), listed.log_ratio
    rows["lfdr"] = 1 - from_others(listed.log_ratio.double(), question.share)
    n_by_tail = distances.n_from(distances.least(question.fdr))
    return Listing(rows, found.cell_score, found.gene_score, found.depth, n_by_tail, found.n_by_ratio)


def _joined(question: Question, distances: Distances, min_ratio: float, parts: Iterable[_Part], _: int = 0) -> _Part:
    """What several blocks bring; of entries, those that may still be listed, `distances` being known before."""
    counts, every = torch.zeros_like(distances.counts), []
    held: list[Entries] = []
    n_entries, n_by_ratio, enough = 0, 0, question.max_entries
    gene_score = torch.zeros((), dtype=torch.float64, device=counts.device)
    for part in parts:
        counts, n_entries = counts + part.counts, n_entries + part.n_entries
        if distances.n_left:
            distances = replace(distances, counts=counts, n_left=distances.n_left - part.n_entries)
        n_by_ratio += part.n_by_ratio
        gene_score = gene_score + part.gene_score
        every.append((part.cell_score, part.depth))
        held.append(part.held)
        if sum(map(len, held)) > 2 * enough:
            held = [_trimmed(Entries.joined(held), question, distances, min_ratio)]
            enough = max(question.max_entries, len(held[0]))
    listed = _trimmed(Entries.joined(held), question, distances, min_ratio)
    cell_score, depth = (torch.cat(values) for values in zip(*every, strict=True))
    return _Part(counts, n_entries, n_by_ratio, listed, cell_score, gene_score, depth)


def _counts_of(scan: Scan, block: DenseBlock) -> Tensor:
    """Entries of a block by distance."""
    return _by_distance(scan, scan.score(block.values(), block.posterior, block.taken).at(block.observed()))


def _by_distance(scan: Scan, scores: Scores) -> Tensor:
    # those not asked about are in a bin before the first
    n_bins = scan.distance_bins
    places = (scores.distance * (n_bins / scan.distance_max)).floor_().add_(1).clamp_(0, n_bins)
    return tally(places, n_bins + 1)[1:]


def _score(
    scan: Scan, question: Question, min_ratio: float, min_distance: float, zero: float, block: DenseBlock
) -> _Part:
    y, observed = block.values(), block.observed()
    scores = scan.score(y, block.posterior, block.taken).at(observed)
    nats, detected = evidence(scores.log_ratio, question.share), y != zero
    at = torch.nonzero(_passing(scores, question.by, min_ratio, min_distance), as_tuple=True)
    held = Entries(
        at[0] + block.start,
        at[1],
        y[at],
        scores.expected[at],
        scores.distance[at],
        scores.log_ratio[at],
        cast("InFamily", scores.own).at(at),
    )
    return _Part(
        _by_distance(scan, scores),
        y.numel() if observed is None else int(observed.sum()),
        int((scores.log_ratio >= min_ratio).sum()),
        held,
        nats.sum(1),
        nats.sum(0),
        (detected if observed is None else detected & observed).sum(1),
    )


def _passing(entries: Scores | Entries, by: str, min_ratio: float, min_distance: float) -> Tensor:
    by_ratio, by_tail = entries.log_ratio >= min_ratio, entries.distance >= min_distance
    return {"lfdr": by_ratio, "q": by_tail, "either": by_ratio | by_tail}[by]


def _trimmed(held: Entries, question: Question, distances: Distances, min_ratio: float) -> Entries:
    """Entries that may still be listed: that may pass, and are not behind enough of those that will."""
    by, fdr = question.by, question.fdr
    held = held.at(_passing(held, by, min_ratio, distances.least(fdr, certain=False)))
    first, slack = (held.distance, SLACK) if by == "q" else (held.log_ratio, 0.0)
    sure = first[_passing(held, by, min_ratio, distances.least(fdr))]
    if len(sure) <= question.max_entries:
        return held
    return held.at(first >= sure.topk(question.max_entries).values[-1] - slack)
