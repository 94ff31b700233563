"""Whether a fit finds the memory that it needs, told before any work is done."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .._memory import OutOfMemoryError, available_bytes, words_of_bytes
from .._settings import settings
from .._workers import n_workers
from ..inference.demand import COUNTS, Size, demand, engine_of

if TYPE_CHECKING:
    from ..inference.demand import Demand
    from ._fit_prepare import PreparedFit

# what is told of a fit is right within a quarter: only what cannot fit is refused
CERTAIN = 0.75


def size_of(prepared: PreparedFit) -> Size:
    """The sizes of a fit of the cells that were read."""
    matrix, options = prepared.matrix, prepared.options
    return Size(
        engine=engine_of(prepared.arguments.engine, options.likelihood, all_observed=matrix.observed is None),
        n_cells=matrix.shape[0],
        n_genes=matrix.shape[1],
        n_factors=options.n_factors,
        n_covariates=matrix.n_covariates,
        n_stored=matrix.source.stored_about,
        batch_size=options.batch_size,
        n_workers=n_workers(),
        is_sparse=matrix.source.is_sparse,
        in_memory=matrix.source.place == "memory",
        on_gpu=options.device.type == "cuda",
        max_cov_bytes=settings.max_cov_bytes,
        own_pattern=0 if matrix.observed is None else matrix.observed.pattern.nnz,
    )


def check_memory(size: Size, device: torch.device) -> None:
    """Raise if a fit of this size cannot fit into what is left of memory, here or on its device."""
    needed = demand(size)
    _check(needed.n_bytes, available_bytes(), "memory", size, needed)
    if device.type == "cuda":
        _check(needed.n_device_bytes, torch.cuda.mem_get_info(device)[0], f"memory on {device}", size, needed)


def _check(n_bytes: int, available: int | None, where: str, size: Size, needed: Demand) -> None:
    if available is None or CERTAIN * n_bytes <= available:
        return
    msg = (
        f"There is not enough {where} to fit the model: it takes about {words_of_bytes(n_bytes)} more, and "
        f"{words_of_bytes(available)} are left. {remedy(size, needed)}"
    )
    raise OutOfMemoryError(msg)


def remedy(size: Size, needed: Demand) -> str:
    """Changes that make a fit take less memory, the most useful first."""
    parts = needed.device or needed.host
    largest = max(parts, key=lambda name: parts[name])
    ways = ["fewer genes (mask_var)"]
    if size.n_factors > 1:
        ways.insert(0, "a smaller n_factors")
    if size.n_batches == 1 or largest == "blocks of cells":
        ways.insert(0, "a smaller batch_size")
    words = f"Pass {', '.join(ways[:-1])}{' or ' if len(ways) > 1 else ''}{ways[-1]}"
    if size.engine == COUNTS and size.keeps_cov and largest == "cells":
        words = f"Lower settings.max_cov_bytes, so that covariances of cells are computed when needed, or p{words[1:]}"
    if size.in_memory and size.values > sum(parts.values()) / 4:
        words += ', or open the data with anndata.read_h5ad(path, backed="r")'
    return words + "."
