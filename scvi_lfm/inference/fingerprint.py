"""What the answer of a fit depends on, told by a few words: a checkpoint is of one fit alone."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
import torch

from .._settings import settings
from ..model.likelihoods import LIKELIHOODS
from .counts.state import holds_covariances

if TYPE_CHECKING:
    from ..data import CellMatrix
    from .options import FitOptions

# of all cells the sums are compared, of so many every value
CELLS = 64


def fingerprint(matrix: CellMatrix, options: FitOptions) -> dict[str, str]:
    """Marks of a fit that must be the same, by the names that users know."""
    from .. import __version__

    found = {
        "version of scvi_lfm": __version__,
        "version of torch": torch.__version__,
        "number of cells and genes": "{} x {}".format(*matrix.shape),
        "n_factors": f"'auto' of at most {options.n_factors}" if options.choose_rank else str(options.n_factors),
        "likelihood": options.likelihood,
        "noise": options.noise,
        "family": options.family,
        "prior_scales": str({name: np.asarray(value).tolist() for name, value in sorted(options.prior_scales.items())}),
        "batch_size": str(options.batch_size),
        "tol": repr(options.tol),
        "device": str(options.device),
        "precision": str(options.dtype),
        "seed that rng gave": str(options.seed),
        "size_factors": _digest(options.log_size),
        "levels": str(options.levels),
        "values": _digest_of_values(matrix),
        "observed": "all" if matrix.observed is None else _digest_of_pattern(matrix.observed.pattern),
        "held_out": "none" if matrix.held_out is None else _digest(*vars(matrix.held_out).values()),
        "covariates": _digest(matrix.covariates),
    }
    if not LIKELIHOODS[options.likelihood].linear:
        # steps from what is held differ from those without it
        held = holds_covariances(matrix.shape[0], 1 + matrix.n_covariates + options.n_factors)
        found["covariances of cells, by settings.max_cov_bytes,"] = "held" if held else "computed when needed"
    if options.device.type == "cuda":
        found["settings.half_density"], found["settings.compile"] = repr(settings.half_density), str(settings.compile)
    # where a number of factors is chosen, it says when they are first dropped
    return found | ({"max_epochs": str(options.max_epochs)} if options.choose_rank else {})


def differences(kept: dict[str, str], asked: dict[str, str]) -> str:
    """Words for that in which two fits differ; empty if they are the same."""
    words = []
    for name in [*asked, *(kept.keys() - asked.keys())]:
        was, now = kept.get(name, "absent"), asked.get(name, "absent")
        if was != now:
            words.append(f"{name} (was {was}, is {now})")
    return ", ".join(words)


def _digest_of_values(matrix: CellMatrix) -> str:
    source, summary = matrix.source, matrix.summary
    some = source.rows(np.unique(np.linspace(0, source.shape[0] - 1, CELLS).astype(int)))
    coo = sp.coo_array(some)
    present = coo.data != 0
    kind = np.array([source.is_sparse, matrix.level])
    entries = (part[present].astype(np.float64) for part in (*coo.coords, coo.data))
    return _digest(kind, summary.cell_sums, summary.empty_genes, *entries)


def _digest_of_pattern(pattern: sp.csr_array) -> str:
    return _digest(pattern.indptr.astype(np.int64), pattern.indices.astype(np.int64))


def _digest(*arrays: np.ndarray | None) -> str:
    """A few letters that differ where arrays do."""
    given = [array for array in arrays if array is not None]
    found = hashlib.sha256()
    for array in given:
        found.update(array.tobytes())
    return found.hexdigest()[:12] if given else "none"
