"""The package's own rules: which room imports which, what a public function looks like, what its docstring promises."""

from __future__ import annotations

import ast
import dataclasses
import doctest
import functools
import graphlib
import importlib
import inspect
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import scipy.sparse as sp

import scvi_lfm as lfm
from scvi_lfm import _keys
from scvi_lfm._keys import FitKeys
from scvi_lfm.posterior.store.schema import FIELDS, fit_places

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import anndata as ad

PACKAGE = Path(lfm.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
# a room imports only from rooms before it
ROOMS = ("linalg", "data", "model", "posterior", "inference", "tl", "get", "datasets", "pl", "_cli")
# small modules at the root, which import no room and which every room may import
HELPERS = (
    "_calls",
    "_compile",
    "_context",
    "_fit_arguments",
    "_keys",
    "_lazy",
    "_memory",
    "_settings",
    "_spelling",
    "_validate",
    "_workers",
)
PUBLIC = {
    f"{room}.{name}": getattr(module, name)
    for room in ("tl", "get", "pl", "datasets")
    for module in [importlib.import_module(f"scvi_lfm.{room}")]
    for name in module.__all__
}
ON_ANNDATA = {name: function for name, function in PUBLIC.items() if not name.startswith("datasets.")}


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@functools.cache
def parsed(path: Path) -> ast.Module:
    """A file's syntax, not to be changed."""
    return ast.parse(path.read_text())


@functools.cache
def lines_in(path: Path) -> list[str]:
    return path.read_text().splitlines()


@functools.cache
def nodes_of(path: Path) -> tuple[ast.AST, ...]:
    """Every part of a file's syntax."""
    return tuple(ast.walk(parsed(path)))


def offenders(broken: Callable[[Path], object], files: Iterable[Path] = FILES) -> dict[str, object]:
    """What is wrong with files, by name: one test for all of them is much cheaper than one for each."""
    return {name_of(path): found for path in files if (found := broken(path))}


def imported_rooms(path: Path) -> set[str]:
    """First part, below the package, of every module that a file imports, wherever in the file."""
    package = ("scvi_lfm", *path.relative_to(PACKAGE).parts[:-1])
    found = set()
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            modules = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            base += node.module.split(".") if node.module else []
            # `from . import name` may name modules
            modules = [[*base, alias.name] if len(base) == 1 else base for alias in node.names]
        else:
            continue
        found |= {module[1] for module in modules if module[0] == "scvi_lfm" and len(module) > 1}
    return found & {*ROOMS, *HELPERS}


def test_every_file_belongs_to_a_room_or_is_a_helper():
    """A file outside the order of rooms escapes the rules of imports."""
    at_root = {path.stem for path in PACKAGE.glob("*.py")} | {
        path.parent.name for path in PACKAGE.glob("*/__init__.py")
    }
    assert at_root == {*ROOMS, *HELPERS, "__init__", "__main__", "scvi_lfm"} - {"scvi_lfm"}


def imported_from_below(path: Path) -> set[str]:
    """Rooms from which a file must not import, and does."""
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room in {"__init__", "__main__"}:
        return set()
    above = set() if room in HELPERS else set(ROOMS[: ROOMS.index(room)])
    return imported_rooms(path) - above - set(HELPERS) - {room}


def test_a_room_imports_only_from_rooms_above_it():
    """Data flow one way, so that a room can be read without those that use it."""
    assert offenders(imported_from_below) == {}


def test_the_walk_sees_imports_of_every_form(tmp_path, monkeypatch):
    path = tmp_path / "tl" / "_new.py"
    path.parent.mkdir()
    path.write_text(
        "from .. import get\n"
        "from ..data import read_matrix\n"
        "from ..posterior.store import write_fit\n"
        "from ._common import layer_of_fit\n"
        "import scvi_lfm.pl\n"
        "def f():\n    from scvi_lfm.inference import fit\n"
    )
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    assert imported_rooms(path) == {"get", "data", "posterior", "tl", "pl", "inference"}
    assert offenders(imported_from_below, [path]) == {"tl/_new.py": {"get", "pl"}}


def imported_modules(path: Path) -> set[str]:
    """Names, below the package, of the modules that a file imports from its own room, those for types included."""
    room = path.relative_to(PACKAGE).parts[:-1]
    found = set()
    for node in nodes_of(path):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*room[: len(room) - node.level + 1], *(node.module.split(".") if node.module else [])]
            found |= {".".join(base), *(".".join([*base, alias.name]) for alias in node.names)}
    return found


def circle(imports: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle, or none."""
    try:
        tuple(graphlib.TopologicalSorter(imports).static_order())
    except graphlib.CycleError as error:
        return error.args[1]
    return []


@pytest.mark.parametrize("room", ROOMS)
def test_no_circle_of_imports_inside_a_room(room):
    """Of two modules that need each other, types included, neither can be read first."""
    files = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in (PACKAGE / room).rglob("*.py")}
    assert circle({name: imported_modules(path) & (set(files) - {name}) for name, path in files.items()}) == []


def test_the_walk_sees_circles_for_types(tmp_path, monkeypatch):
    (tmp_path / "tl").mkdir()
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    (tmp_path / "tl" / "_a.py").write_text("from ._b import f\n")
    (tmp_path / "tl" / "_b.py").write_text("if TYPE_CHECKING:\n    from . import _a\n")
    with pytest.raises(AssertionError):
        test_no_circle_of_imports_inside_a_room("tl")


def test_what_the_model_page_names_exists():
    """The page is ticked against the code, file by file."""
    page = (PACKAGE.parent / "docs" / "model.md").read_text()
    missing = []
    for file, names in re.findall(r"`(\w+(?:/\w+)*\.py)`((?::\s+|,\s*)(?:`[\w.]+`(?:,\s*|\s+and\s+)?)+)?", page):
        path = PACKAGE / file
        if not path.exists():
            missing.append(file)
        elif names.startswith(":"):
            defined = names_defined(parsed(path))
            missing += [f"{file}: {name}" for name in re.findall(r"`([\w.]+)`", names) if name not in defined]
    assert missing == []


def names_defined(tree: ast.Module) -> set[str]:
    """Functions, classes, their methods, fields and constants of a module."""
    found = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}
        if isinstance(node, ast.ClassDef):
            inside = names_defined(ast.Module(node.body, []))
            found |= {f"{node.name}.{name}" for name in inside}
    return found


def test_files_are_short():
    """A file of one purpose fits into the head."""
    assert [name_of(path) for path in FILES if len(lines_in(path)) > 300] == []


def test_functions_are_short():
    """So is a function; the draw of data of every kind is a list of what each kind takes."""
    functions = [(node, path) for path in FILES for node in nodes_of(path) if isinstance(node, ast.FunctionDef)]
    assert {node.name for node, path in functions if sum(1 for _ in lines_of(node, path)) > 50} <= {"simulate"}


def lines_of(function: ast.FunctionDef, path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of the lines of a function's body that say something, without comments and its docstring."""
    body = function.body[1:] if has_docstring(function) else function.body
    if body:
        lines = lines_in(path)
        for number in range(body[0].lineno, function.end_lineno + 1):
            line = lines[number - 1].split("  # ")[0].strip()
            if re.search(r"\w", line) and not line.startswith("#"):
                yield number, line


# so many lines of two functions are no accident
ALIKE = 5


def repeated(paths: list[Path]) -> list[list[str]]:
    """Places of each run of lines that stands more than once in bodies of functions."""
    places = defaultdict(list)
    for path in paths:
        functions = [node for node in nodes_of(path) if isinstance(node, ast.FunctionDef)]
        inner = {part for node in functions for part in ast.walk(node) if part is not node}
        for function in functions:
            lines = [] if function in inner else list(lines_of(function, path))
            for start in range(len(lines) - ALIKE + 1):
                run = lines[start : start + ALIKE]
                places[tuple(text for _, text in run)].append(f"{name_of(path)}:{run[0][0]}")
    return [where for where in places.values() if len(where) > 1]


def test_nothing_is_written_twice():
    """Each idea is built once: a fault that is mended in one place is mended."""
    assert repeated(FILES) == []


def test_the_rule_sees_what_is_written_twice(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    path = tmp_path / "a.py"
    lines = "".join(f"    x = x + {number}\n" for number in range(ALIKE))
    path.write_text(f"def f(x):\n    'What.'\n{lines}\ndef g(x):\n    # why\n{lines}")
    assert repeated([path]) == [["a.py:3", f"a.py:{ALIKE + 6}"]]
    other = tmp_path / "b.py"
    other.write_text(f"def f(x):\n{lines}\ndef g(x):\n{lines.replace('+ 2', '- 2')}")
    assert repeated([other]) == []


# a docstring that begins so is read with the line above it, or with a signature
LEANING = (
    "All of",
    "As",
    "At",
    "Between",
    "Both",
    "By",
    "Exact for",
    "For",
    "From",
    "In",
    "Inside",
    "It",
    "Itself",
    "None",
    "Of",
    "Some of",
    "That",
    "The same",
    "These",
    "This",
    "Those",
    "Under",
    "Where",
    "With",
    "Without",
)


def test_docstrings_stand_alone():
    """Each may stand in an index."""
    leaning = {}
    for path in (path for path in FILES if path.parent.name != "_cli"):
        for node in nodes_of(path):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                line = (ast.get_docstring(node, clean=False) or "").lstrip().split("\n")[0]
                if re.match(rf"({'|'.join(LEANING)})\b", line):
                    leaning[f"{name_of(path)}: {node.name}"] = line
    assert leaning == {}


ANSWERING = ("data", "linalg", "model", "posterior", "inference")


def test_nobody_asks_for_a_class_of_ours():
    """What differs between sources, covariances, noise, likelihoods and engines is a method of theirs."""
    ours, asked = set(), []
    for path in FILES:
        for node in nodes_of(path):
            if isinstance(node, ast.ClassDef) and path.relative_to(PACKAGE).parts[0] in ANSWERING:
                ours.add(node.name)
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
                named = {part.id for part in ast.walk(node.args[1]) if isinstance(part, ast.Name)}
                asked.append((name_of(path), named))
    assert [(name, named & ours) for name, named in asked if named & ours] == []


def string_parts(path: Path) -> set[str]:
    """Strings and pieces of f-strings, without docstrings."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docstrings = {
        id(node.body[0].value) for node in nodes_of(path) if isinstance(node, documented) and has_docstring(node)
    }
    constants = (node for node in nodes_of(path) if isinstance(node, ast.Constant) and id(node) not in docstrings)
    return {node.value for node in constants if isinstance(node.value, str)}


def has_docstring(node: ast.Module | ast.ClassDef | ast.FunctionDef) -> bool:
    return ast.get_docstring(node, clean=False) is not None


def test_keys_of_a_fit_are_spelled_in_one_place():
    patterns = [field.default for field in dataclasses.fields(FitKeys)]
    spelled = {part for pattern in patterns for part in (pattern.format("lfm"), pattern.removeprefix("{}"))}
    # an entry of uns whose name nothing else has
    spelled |= {field.name for field in FIELDS if re.match(r"(prior_)?(cell|gene)_(mean|cov|basis|eig)$", field.name)}
    spelled |= {_keys.TOTAL_COUNTS, _keys.EXPECTED_COUNTS, _keys.CONVERGED, "X_"}
    # results of other tools end so as well
    spelled -= {"", "lfm", "_sd"}
    assert {"lfm_a", "prior_cell_mean", "X_"} <= spelled
    files = [path for path in FILES if path.name != "_keys.py"]
    assert offenders(lambda path: spelled & string_parts(path), files) == {}
    assert offenders(lambda path: {"prior_scales"} & string_parts(path), files) != {}


def params_by_hand(path: Path) -> list[ast.expr]:
    subscripts = [node.slice for node in nodes_of(path) if isinstance(node, ast.Subscript)]
    return [part for part in subscripts if isinstance(part, ast.Constant) and part.value == _keys.PARAMS]


def test_params_of_a_fit_are_looked_up_by_their_key():
    assert offenders(params_by_hand) == {}


def test_values_are_read_through_the_data_room():
    """Elsewhere nothing holds the array of a matrix, makes a source of one, or cuts cells into blocks by hand."""
    files = [path for path in FILES if path.parent.name != "data"]
    assert offenders(lambda path: values_read_by_hand(nodes_of(path)), files) == {}


def opens_or_asks_by_hand(path: Path) -> bool:
    nodes = nodes_of(path)
    opens = path.name != "_open.py" and "read_fit" in {node.name for node in nodes if isinstance(node, ast.alias)}
    return opens or "params" in {node.attr for node in nodes if isinstance(node, ast.Attribute)}


def test_tools_open_fits_in_one_place_and_ask_for_arguments_by_name():
    assert offenders(opens_or_asks_by_hand, (PACKAGE / "tl").glob("*.py")) == {}


def values_read_by_hand(nodes: Iterable[ast.AST]) -> list[str]:
    nodes, loops = list(nodes), (ast.For, ast.ListComp, ast.GeneratorExp, ast.DictComp)
    by_hand = [
        node
        for node in nodes
        if isinstance(node, ast.Attribute)
        and node.attr == "values"
        and re.search(r"(matrix|source)$", ast.unparse(node.value))
    ]
    by_hand += [node for node in nodes if isinstance(node, ast.Name) and node.id == "MemorySource"]
    for loop in (node for node in nodes if isinstance(node, loops)):
        calls = [node for node in ast.walk(loop) if isinstance(node, ast.Call)]
        by_hand += [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "batch"]
    return [ast.unparse(node) for node in by_hand]


def test_the_rule_sees_values_read_by_hand():
    for line in (
        "y = self._matrix.values[rows]",
        "y = matrix.source.values",
        "source = MemorySource(y)",
        "parts = [matrix.batch(slice(start, start + 512), device) for start in range(0, n, 512)]",
        "for start in range(n):\n    step(matrix.batch(slice(start), device))",
    ):
        assert len(values_read_by_hand(ast.walk(ast.parse(line)))) == 1
    allowed = (
        "one = matrix.batch(None, device)\nvalues = trace.values\nfor cells, batch in blocks(matrix, device): f(batch)"
    )
    assert not values_read_by_hand(ast.walk(ast.parse(allowed)))


def test_importing_the_package_brings_nothing_heavy():
    """Beyond what `import anndata` brings: no other package at all, and none of our rooms.

    Tables and plots are imported without what fits and draws.
    """
    code = (
        "import anndata, sys\n"
        "before = set(sys.modules)\n"
        "import scvi_lfm\n"
        "new = set(sys.modules) - before\n"
        "print(*{name.split('.')[0] for name in new} - {*sys.stdlib_module_names, 'scvi_lfm'})\n"
        "print(*{name for name in new if name.count('.') == 1 and name.startswith('scvi_lfm.')})\n"
        "import scvi_lfm.get, scvi_lfm.pl\n"
        "print(*{'torch', 'pyro', 'matplotlib', 'scanpy'} & set(sys.modules))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    packages, modules, heavy = run.stdout.splitlines()
    assert (packages, heavy) == ("", "")
    assert {name.removeprefix("scvi_lfm.") for name in modules.split()} <= set(HELPERS)


def test_rooms_come_when_they_are_used():
    """What comes late is found all the same, by users and by completion."""
    assert {"tl", "pl", "get", "datasets", "model", "settings", "__version__"} <= set(dir(lfm))
    for name in ("tl", "pl", "get", "datasets", "model"):
        assert getattr(lfm, name).__name__ == f"scvi_lfm.{name}"
    with pytest.raises(AttributeError, match="has no attribute 'pp'"):
        lfm.pp  # noqa: B018


def test_every_tool_has_its_own_file_and_tests():
    """A tool and its tests are found from its name."""
    tests = Path(__file__).parent
    for name in lfm.tl.__all__:
        assert inspect.getfile(inspect.unwrap(getattr(lfm.tl, name))) == str(PACKAGE / "tl" / f"_{name}.py")
        assert (tests / "tl" / f"test_{name}.py").exists()


@pytest.mark.parametrize("name", PUBLIC)
def test_signatures(name):
    """Calls stay readable, and arguments may be added without breaking them."""
    signature = inspect.signature(PUBLIC[name])
    parameters = list(signature.parameters.values())
    positional = [parameter for parameter in parameters if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    assert len(positional) <= 3
    assert {parameter.kind for parameter in parameters} <= {
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
    }
    assert all(parameter.annotation is not parameter.empty for parameter in parameters)
    assert signature.return_annotation is not signature.empty
    assert not any(isinstance(parameter.default, bool | list | dict) for parameter in positional)
    assert not any(isinstance(parameter.default, list | dict) for parameter in parameters)


@pytest.mark.parametrize("name", ON_ANNDATA)
def test_signatures_begin_with_adata(name):
    """Scanpy's conventions, which users know."""
    if name == "pl.calibration":  # it draws a report
        pytest.skip("takes what tl.check returns")
    signature = inspect.signature(ON_ANNDATA[name])
    first = next(iter(signature.parameters.values()))
    assert (first.name, first.annotation, first.default) == ("adata", "AnnData", inspect.Parameter.empty)
    if "copy" in signature.parameters:
        assert signature.parameters["copy"].default is False
        assert signature.return_annotation == "AnnData | None"
    for parameter, default in {
        "layer": None,
        "key": inspect.signature(lfm.tl.fit).parameters["key_added"].default,
        "rng": 0,
    }.items():
        if parameter in signature.parameters and name.startswith("tl."):
            assert signature.parameters[parameter].default == default


def test_keys_that_tools_add_are_those_that_others_read():
    """Defaults of writers and readers match."""
    defaults = {name: inspect.signature(function).parameters for name, function in ON_ANNDATA.items()}
    for writer, readers in {
        "tl.rank_genes": ("get.rank_genes_df", "pl.rank_genes"),
        "tl.anomalies": ("get.anomalies_df", "pl.anomalies"),
        "tl.fit": ("get.elbo_df", "get.factors_df", "get.variance_df", "pl.elbo", "pl.factors", "tl.rank_genes"),
    }.items():
        for reader in readers:
            assert defaults[reader]["key"].default == defaults[writer]["key_added"].default


def sections(function) -> dict[str, str]:
    """A numpydoc docstring by section; the text before the first is under ''."""
    found, current, lines = {}, "", inspect.getdoc(function).splitlines()
    for line, below in zip(lines, [*lines[1:], ""], strict=True):
        if below and set(below) == {"-"} and len(below) == len(line):
            current = line
        found.setdefault(current, []).append(line)
    return {name: "\n".join(text[2:] if name else text) for name, text in found.items()}


@pytest.mark.parametrize("name", PUBLIC)
def test_docstrings(name):
    """The reference is made of them: every parameter, every return and every error."""
    function = PUBLIC[name]
    documented = sections(function)
    summary = documented[""].splitlines()[0]
    assert summary.endswith(".")
    assert len(summary) <= 120
    parameters = list(inspect.signature(function).parameters)
    named = re.findall(r"^(\S.*)$", documented.get("Parameters", ""), flags=re.MULTILINE)
    # names alone, without types: those are in the signature
    assert named == parameters
    described = re.split(r"^\S.*$", documented.get("Parameters", ""), flags=re.MULTILINE)[1:]
    assert all(text.strip().endswith((".", ":")) or ">" in text for text in described)
    order = [
        title
        for title in ("", "Parameters", "Returns", "Raises", "Notes", "References", "Examples")
        if title in documented
    ]
    assert list(documented) == order
    if inspect.signature(function).return_annotation != "None":
        assert documented["Returns"].strip()
    if parameters and not name.startswith("pl."):
        assert documented["Raises"].strip()
    if name.startswith("tl."):
        assert documented["Examples"].strip()


@pytest.mark.parametrize("name", PUBLIC)
def test_examples_run(name):
    """An example that breaks misleads."""
    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for example in finder.find(PUBLIC[name], name, globs={}):
        runner.run(example)
    assert runner.failures == 0


# what a call writes, and what its docstring says that it writes


def hold_out_all_ways(adata: ad.AnnData) -> None:
    lfm.tl.hold_out(adata)
    lfm.tl.hold_out(adata, by="rows")
    if adata.uns["lfm"]["params"]["likelihood"] != "normal":
        lfm.tl.hold_out(adata, by="molecules")


def recommend_where_entries_are_missing(adata: ad.AnnData) -> None:
    if sp.issparse(adata.X):
        lfm.tl.recommend(adata, n_top=2)
    else:
        adata.layers["seen"] = sp.csr_matrix(adata.X > 1, dtype=np.float32)
        with pytest.warns(UserWarning, match="not what the fit read"):
            lfm.tl.recommend(adata, n_top=2, layer="seen")
        del adata.layers["seen"]


WRITERS = {
    "rank_genes": lambda adata: lfm.tl.rank_genes(adata, mask_obs=adata.obs["a"].to_numpy() > 0),
    "rank_cells": lambda adata: lfm.tl.rank_cells(adata, "gene_1"),
    "anomalies": lfm.tl.anomalies,
    "check": lambda adata: lfm.tl.check(adata, refit=False),
    "predict": lambda adata: lfm.tl.predict(adata, layer_added="layer_added"),
    "similar_genes": lambda adata: lfm.tl.similar_genes(adata, "gene_1"),
    "hold_out": hold_out_all_ways,
    "recommend": recommend_where_entries_are_missing,
    "sample_posterior": lambda adata: lfm.tl.sample_posterior(adata, 2),
}


# fits that write fields of their own
KINDS = [
    ("normal", {}),
    ("normal", {"noise": "cell_gene"}),
    ("normal", {"covariates": "odd"}),
    ("normal", {"held_out": "test"}),
    ("negative_binomial", {}),
]


def fields(adata: ad.AnnData) -> set[tuple[str, str]]:
    containers = ("obs", "var", "obsm", "varm", "obsp", "varp", "layers", "uns")
    return {(container, name) for container in containers for name in getattr(adata, container)}


PLACE = r"`\.(\w+)\['?(\w+)'?\]"


def without_fields_of_a_fit(adata: ad.AnnData) -> None:
    for container, name in fields(adata):
        if "lfm" in str(name).split("_"):
            del getattr(adata, container)[name]


@pytest.mark.parametrize("name", ["fit", "project"])
def test_returns_lists_every_field_of_the_schema(name):
    """With its shape; which fits write which is tested where the schema is."""
    returns = sections(getattr(lfm.tl, name))["Returns"]
    listed = {}
    for line in re.findall(r"^`\..* : \(.*", returns, flags=re.MULTILINE):
        places, (_, text) = re.findall(PLACE, line), line.split(" : ")
        shapes = re.findall(r"(\([nm],(?: (?:[^(),]|\([^()]*\))+)?\))", text)
        listed |= dict(zip(places, shapes * len(places) if len(shapes) == 1 else shapes, strict=True))
    triangle = "(r+1)(r+2)/2"
    words = {"cell_packed": triangle, "gene_packed": triangle}
    expected = {}
    for field in FIELDS:
        if field.frame != "uns":
            first, *more = (words.get(axis, axis) for axis in field.shape)
            expected[field.frame, field.key("lfm")] = f"({first},{''.join(f' {axis}' for axis in more)})"
    assert listed == expected
    assert set(re.findall(PLACE, returns)) == {*fit_places("lfm"), ("uns", "lfm_written")}
    if name == "fit":
        parts = [field.name for field in FIELDS if field.frame == "uns"]
        assert [part for part in parts if f"`{part}`" not in returns] == []


@pytest.mark.parametrize("name", [name for name in lfm.tl.__all__ if name not in {"fit", "project"}])
def test_returns_lists_every_field_that_is_written(name, fit_of):
    """Users learn from Returns where their results lie."""
    returns = sections(getattr(lfm.tl, name))["Returns"]
    listed = set(re.findall(PLACE, returns))
    written = set()
    for likelihood, options in KINDS:
        adata = fit_of(likelihood, **options)
        adata.uns.pop("lfm_written", None)
        before, values = fields(adata), adata.to_df()
        WRITERS[name](adata)
        added = fields(adata) - before
        np.testing.assert_array_equal(adata.to_df(), values)
        written |= added
        for container, key in added:
            if container == "uns" and key != "lfm_written":
                for part in adata.uns[key]:
                    assert re.search(rf"['`]{part}['`]", returns), f"{key}: {part}"
    assert listed == written


def test_every_tool_is_tested_for_what_it_writes():
    """A new tool is not left out."""
    assert set(WRITERS) | {"fit", "project"} == set(lfm.tl.__all__)
