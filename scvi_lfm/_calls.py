"""Between a user's call and the package: what a wrong argument name meant, and the line that a warning points at."""

from __future__ import annotations

import functools
import inspect
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from ._memory import naming_memory
from ._spelling import nearest
from ._validate import near_matches

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
Result = TypeVar("Result")
PACKAGE = f"{Path(__file__).parent}{os.sep}"
COMMANDS = f"{PACKAGE}_cli{os.sep}"  # the command line calls the package as a user does

# what other packages call our arguments; where a function has several that a name may mean, the first of this table
ELSEWHERE = {
    "n_factors": "n_comps n_components n_pcs n_latent n_dims n_topics n_hidden num_factors rank k",
    "rng": "random_state seed random_seed",
    "covariates": "batch_key batch batch_keys categorical_covariate_keys continuous_covariate_keys "
    "covariate design formula vars_to_regress",
    "mask_var": "use_highly_variable highly_variable subset hvg genes_use mask",
    "mask_obs": "mask_cells cells_use cells mask",
    "likelihood": "gene_likelihood distribution loss fam",
    "size_factors": "size_factor_key library_size total_counts offset exposure",
    "device": "use_gpu gpu cuda accelerator devices use_cuda",
    "max_epochs": "max_iter n_iter n_epochs epochs max_steps n_steps niter",
    "learning_rate": "lr step_size",
    "tol": "tolerance eps epsilon",
    "progress": "verbose progress_bar progressbar show_progress silent",
    "copy": "inplace",
    "rankby": "rank_by sort_by sortby order_by orderby by rankby_abs",
    "reference": "ref adata_ref ref_adata adata_reference",
    "groupby": "group_by cluster_key labels labels_key cluster clusters",
    "groups": "group",
    "group": "groups",
    "genes": "gene gene_names features var_names",
    "gene": "genes gene_name feature var_name var_names",
    "var_names": "gene genes gene_names features",
    "obs_names": "cell cells cell_names barcodes users",
    "cell": "cells cell_name barcode obs_names",
    "n_top": "n top top_n k n_neighbors n_items n_genes",
    "n_genes": "n top top_n n_top n_vars n_features",
    "n_cells": "n_obs n_samples",
    "n_samples": "n size samples n_draws num_samples",
    "fdr": "alpha level cutoff fdr_threshold",
    "max_lfsr": "pval_cutoff fdr alpha cutoff lfsr",
    "factors": "components comps dims pcs factor",
    "color": "colour c hue groupby",
    "cmap": "color_map colormap palette",
    "save": "savefig filename fname path outfile",
    "ax": "axes axs",
    "fraction": "frac test_size size p",
    "key": "use_rep basis rep obsm embedding neighbors_key key_added",
    "layer": "use_rep obsm",
    "key_added": "key",
}
# where more is to say, to functions that have the argument
HINTS = {
    "use_highly_variable": ("mask_var", "Pass mask_var='highly_variable', the name of a boolean column of var."),
    "inplace": ("copy", "Pass copy=True where inplace=False is meant."),
    "use_raw": (
        "layer",
        "Values are read from X or a layer: adata.layers['raw'] = adata.raw[:, adata.var_names].X makes one, for "
        "layer='raw'.",
    ),
    "verbose": ("progress", "`progress` shows a bar, and scvi_lfm.settings.verbosity says how much is logged."),
}


def named_arguments(function: Callable[P, Result]) -> Callable[P, Result]:
    """Raise, where a call passes an argument that `function` does not have, with the one that was meant."""
    parameters = inspect.signature(function).parameters.values()
    known = [parameter.name for parameter in parameters]
    by_place = [parameter.name for parameter in parameters if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> Result:
        for name in kwargs:
            if name not in known:
                msg = f"{function.__name__}() has no argument {name!r}. {_meant(name, known)}"
                raise TypeError(msg)
        if len(args) > len(by_place):
            places = ", ".join(by_place) or "none"
            rest = ", ".join(f"{name}=..." for name in known if name not in by_place)
            msg = (
                f"{function.__name__}() takes {len(by_place)} argument(s) by place ({places}), found {len(args)}. "
                f"Pass the others by name{f': {rest}' if rest else ''}."
            )
            raise TypeError(msg)
        try:
            with naming_memory(f"run {function.__name__}()"):
                return function(*args, **kwargs)
        except (RuntimeError, ValueError) as error:
            # numpy's is a ValueError and torch's a RuntimeError
            if "LinAlgError" not in type(error).__name__:
                raise
            msg = (
                f"{function.__name__}() broke down numerically: values, or fields of the fit, differ by too many "
                "orders of magnitude, or were changed since. Look at them, or run lfm.tl.fit(adata) again."
            )
            raise FloatingPointError(msg) from error

    return call


def _meant(name: str, known: list[str]) -> str:
    """What to write for the argument `name`, which is none of `known`."""
    needs, hint = HINTS.get(name, ("", ""))
    if needs in known:
        return hint
    ours = _as_elsewhere(name, known)
    return f"Did you mean {ours[0]!r}?" if ours else near_matches(name, known)


def meant_by(name: str, known: list[str]) -> list[str]:
    """The arguments that `name`, which is none of `known`, may have meant; none where nothing is like it."""
    needs, _ = HINTS.get(name, ("", ""))
    return [needs] if needs in known else _as_elsewhere(name, known)[:1] or nearest(name, known)


def _as_elsewhere(name: str, known: list[str]) -> list[str]:
    return [argument for argument, theirs in ELSEWHERE.items() if argument in known and name.lower() in theirs.split()]


def warn_user(message: str | UserWarning) -> None:
    """Warn at the line of the user's code that called the package, however deep inside it this is."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and _is_inside(frame.f_code.co_filename):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, UserWarning, stacklevel=level)


def _is_inside(path: str) -> bool:
    return path.startswith(PACKAGE) and not path.startswith(COMMANDS)
