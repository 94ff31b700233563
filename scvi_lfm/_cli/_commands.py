"""The commands: from files through one tool to files and a table."""

from __future__ import annotations

import inspect
import math
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import scvi_lfm as lfm

from .._fit_arguments import AUTO
from .._keys import PARAMS, SECONDS, VARIANCE_RATIO
from ..model.likelihoods import CONTINUOUS, COUNTS
from ..posterior.store.lookup import entry
from ..posterior.store.params import arguments_of
from ._demo import run_demo
from ._drafts import new_file
from ._explore import explore
from ._files import DATA, TABLE, check_fitted, read_data
from ._messages import CommandError, say
from ._replaceable import check_replaceable_table
from ._results import put_back
from ._sources import Source, read_source, target_of
from ._tables import anomalies_text, rank_genes_text
from ._writing import check_space, write_data, write_table

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import anndata as ad
    import pandas as pd

    from ._drafts import Draft


def _demo(arguments: argparse.Namespace) -> None:
    run_demo(arguments.out)


def _fit(arguments: argparse.Namespace) -> None:
    _check_normalize(arguments)
    if arguments.plan:
        adata, _ = read_source(arguments)
        print(_run(lfm.plan, arguments, adata))
        return
    with _output(arguments, arguments.data) as draft:
        adata, source = read_source(arguments)
        check_space(adata, draft, source)
        _run(lfm.tl.fit, arguments, adata)
        write_data(adata, draft, source)
    say(_summary(adata, arguments.key_added))
    say(f"wrote {draft.target}")


def _rank(arguments: argparse.Namespace) -> None:
    _check_n_top(arguments.n_top)
    with ExitStack() as files:
        drafts = _drafts(arguments, files)
        adata, source = read_source(arguments, values=False)
        check_fitted(adata, arguments.data, arguments.key)
        reference = None if arguments.reference == "average" else arguments.reference
        _run(lfm.tl.rank_genes, arguments, adata, mask_obs=arguments.mask, reference=reference)
        table = lfm.get.rank_genes_df(adata, key=arguments.key_added)
        _write_results(adata, table, drafts, source)
    _say_written(drafts)
    if table["logfoldchanges"].isna().all():
        say("log2 fold changes are NaN: the fit read values that are not log1p")
    if arguments.n_top:
        print(rank_genes_text(table, arguments.n_top))


def _anomalies(arguments: argparse.Namespace) -> None:
    _check_n_top(arguments.n_top)
    with ExitStack() as files:
        drafts = _drafts(arguments, files)
        adata, source = read_source(arguments)
        check_fitted(adata, arguments.data, arguments.key)
        _run(lfm.tl.anomalies, arguments, adata)
        table = lfm.get.anomalies_df(adata, key=arguments.key_added)
        _write_results(adata, table, drafts, source)
    _say_written(drafts)
    params = adata.uns[arguments.key_added][PARAMS]
    say(
        f"of {adata.n_obs * adata.n_vars:,} values, {params['n_by_ratio']:,} look as if they came from other cells "
        f"(lfdr at most {arguments.fdr:g}) and {params['n_by_tail']:,} are improbable (q at most {arguments.fdr:g})"
    )
    depth = table.attrs["depth_correlation"]
    if math.isfinite(depth):
        say(
            f"the cells' scores correlate {depth:+.2f} with the number of genes detected; "
            "far from zero, do not choose cells by them"
        )
    if arguments.n_top and not table.empty:
        print(anomalies_text(table, arguments.n_top))


def _project(arguments: argparse.Namespace) -> None:
    with _output(arguments, arguments.data, arguments.reference) as draft:
        reference = read_data(arguments.reference, values=False)
        check_fitted(reference, arguments.reference, arguments.key)
        if arguments.normalize:
            _check_normalized(arguments, reference)
        adata, source = read_source(arguments)
        check_space(adata, draft, source)
        _run(lfm.tl.project, arguments, adata, reference=reference)
        write_data(adata, draft, source)
    say(f"placed {adata.n_obs:,} cells among the {reference.n_obs:,} of {arguments.reference}")
    say(f"wrote {draft.target}")


def _merge(arguments: argparse.Namespace) -> None:
    paths = (arguments.data, arguments.results)
    with _output(arguments, *paths) as draft:
        adata, source = read_source(arguments, values=False)
        check_space(adata, draft, source)
        results = read_data(arguments.results, values=False)
        fields = put_back(adata, results, paths)
        write_data(adata, draft, source)
    say(f"put {len(fields)} fields of {arguments.results} back into {arguments.data}")
    say(f"wrote {draft.target}")


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "demo": _demo,
    "fit": _fit,
    "rank": _rank,
    "anomalies": _anomalies,
    "project": _project,
    "explore": explore,
    "merge": _merge,
}


def _run(tool: Callable[..., object], arguments: argparse.Namespace, adata: ad.AnnData, **others: object) -> object:
    """Call a tool with the options that have the names of its arguments, and `others`, which come before them."""
    asked = vars(arguments)
    return tool(adata, **{name: asked[name] for name in inspect.signature(tool).parameters if name in asked} | others)


def _check_normalize(arguments: argparse.Namespace) -> None:
    """Raise if counts are to be log-normalised, and fitted as counts."""
    if arguments.normalize is None:
        return
    for option, given in (
        (f"--likelihood {arguments.likelihood}", arguments.likelihood not in {AUTO, *CONTINUOUS}),
        ("--size-factors", arguments.size_factors is not None),
    ):
        if given:
            msg = f"{option} is for counts, and --normalize fits their logarithms: leave one of them out"
            raise CommandError(msg)


def _check_normalized(arguments: argparse.Namespace, reference: ad.AnnData) -> None:
    """Raise if the reference was not log-normalised by its fit: new cells are read as its were."""
    fitted = arguments_of(entry(reference.uns[arguments.key], PARAMS, arguments.key), arguments.key)
    if fitted.normalize is not None:
        return
    told = (
        "counts, so new cells bring counts"
        if fitted.likelihood in COUNTS
        else ("values as they were, so new cells bring values normalised like those")
    )
    msg = f"{arguments.reference} was fitted to {told}: leave --normalize out, or fit it with --normalize"
    raise CommandError(msg)


def _summary(adata: ad.AnnData, key: str) -> str:
    stored = adata.uns[key]
    likelihood, ratio = stored[PARAMS]["likelihood"], stored[VARIANCE_RATIO]
    found = (
        f"{(ratio > 0).sum()} of them are on"
        if likelihood not in CONTINUOUS
        else f"they explain {ratio.sum():.1%} of the variance"
    )
    return (
        f"fitted {adata.n_obs:,} cells x {adata.n_vars:,} genes with {len(ratio)} factors "
        f"(likelihood {likelihood}) in {stored[SECONDS]:.1f} s; {found}"
    )


@contextmanager
def _output(arguments: argparse.Namespace, *inputs: Path) -> Iterator[Draft]:
    """A place to write the data to, which is checked on entry."""
    target = target_of(arguments)
    if target is None:
        more = f"scvi-lfm {arguments.command} --help"
        msg = f"name a file to write to, or pass --in-place to write into a zarr store (see {more})"
        raise CommandError(msg)
    _check_inputs_stay(arguments, *inputs)
    with new_file(target, DATA) as draft:
        yield draft


def _check_inputs_stay(arguments: argparse.Namespace, *inputs: Path) -> None:
    out = arguments.out
    if out is not None and not arguments.force and out.resolve() in {path.resolve() for path in inputs}:
        msg = f"{out} is an input, which the output would replace: name another file, or pass --force to replace it"
        raise CommandError(msg)


def _check_n_top(n_top: int) -> None:
    if n_top < 0:
        msg = f"--n-top must not be negative, found {n_top}"
        raise CommandError(msg)


def _drafts(arguments: argparse.Namespace, files: ExitStack) -> dict[str, Draft]:
    target = target_of(arguments)
    _check_inputs_stay(arguments, arguments.data)
    if arguments.results_only and target is None:
        msg = "--results-only says what --out holds: name a file with --out"
        raise CommandError(msg)
    if arguments.csv is not None and not arguments.force:
        check_replaceable_table(arguments.csv)
    wanted = {"csv": (arguments.csv, TABLE), "out": (target, DATA)}
    return {
        name: files.enter_context(new_file(path, suffixes))
        for name, (path, suffixes) in wanted.items()
        if path is not None
    }


def _write_results(adata: ad.AnnData, table: pd.DataFrame, drafts: dict[str, Draft], source: Source) -> None:
    if "csv" in drafts:
        write_table(table, drafts["csv"])
    if "out" in drafts:
        write_data(adata, drafts["out"], source)


def _say_written(drafts: dict[str, Draft]) -> None:
    for draft in drafts.values():
        say(f"wrote {draft.target}")
