"""From counts to the layer that is fitted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import scipy.sparse as sp

from ..data import read_matrix
from ._messages import CommandError, say

if TYPE_CHECKING:
    import anndata as ad

LOGNORM = "lognorm"
TARGET_SUM = 1e4


def log_normalise(adata: ad.AnnData, layer: str | None = None) -> str:
    """Write log1p of counts per 10,000 into the layer `"lognorm"` and return its name.

    What is there already is neither overwritten nor, as in a layer of log-normalised values, normalised twice.
    """
    import anndata as ad
    import scanpy as sc

    if LOGNORM in adata.layers:
        msg = f"the data have a layer {LOGNORM!r} already; to read it, pass --layer {LOGNORM} instead of --normalize"
        raise CommandError(msg)
    matrix = read_matrix(adata, layer)
    counts, kind = matrix.stored(), matrix.kind
    where = "X" if layer is None else f"layer {layer!r}"
    if kind is not None and kind.minimum < 0:
        msg = f"{where} holds negative values, so these are no counts to normalise"
        raise CommandError(msg)
    if kind is not None and not kind.is_whole:
        say(f"warning: {where} holds values that are not whole numbers; --normalize is for counts")
    # scanpy's normalisation stumbles over sparse arrays
    normalised = ad.AnnData((sp.csr_matrix(counts) if sp.issparse(counts) else counts).astype("float32"))
    sc.pp.normalize_total(normalised, target_sum=TARGET_SUM)
    sc.pp.log1p(normalised)
    adata.layers[LOGNORM] = normalised.X
    return LOGNORM
