"""Sphinx configuration. The build reads nothing from the network."""

import shutil
import warnings
from pathlib import Path

from docutils import nodes
from sphinx_autodoc_typehints import process_signature

import scvi_lfm

HERE = Path(__file__).parent
# it says once for every type that it calls what Sphinx 10 will remove
warnings.filterwarnings("ignore", module="sphinx_autodoc_typehints")

project = "scvi_lfm"
author = "scvi_lfm authors"
copyright = "scvi_lfm authors"
version = release = scvi_lfm.__version__

# Mathematics: where `npm ci --prefix docs` has brought MathJax (Apache-2.0), a build takes a copy along (2 MB) and is
# read without a network. Elsewhere pages name MathJax's own site, and show LaTeX where it cannot be reached.
MATHJAX = HERE / "node_modules" / "mathjax"
if MATHJAX.exists():
    mathjax_path = "mathjax/tex-svg.js"  # in one file: formulas are drawings, which need no fonts
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_autodoc_typehints",
    "sphinx_copybutton",
    "sphinxcontrib.bibtex",
]
exclude_patterns = ["_build", "_templates", "node_modules", "Thumbs.db", ".DS_Store"]
templates_path = ["_templates"]
nitpicky = True
# of the standard library, whose pages are not at hand
nitpick_ignore = [("py:class", "os.PathLike")]

# Docstrings: numpydoc without types, which come from the signature; single backticks are code.
default_role = "literal"
autosummary_generate = True
autodoc_member_order = "bysource"
napoleon_google_docstring = False
napoleon_use_ivar = True
# As plain sections these keep their definition lists: one entry for each key that a function writes.
napoleon_custom_sections = ["Returns", "Raises"]
typehints_document_rtype = False
typehints_use_signature_return = True
always_use_bars_union = True

myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
# Tutorials carry their outputs; a page that wants its cells run says so in its front matter.
nb_execution_mode = "off"
nb_execution_raise_on_error = True
nb_execution_timeout = 600  # seconds for a cell: machines may be busy
nb_merge_streams = True

bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"

html_theme = "sphinx_book_theme"
html_title = "scvi_lfm"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_theme_options = {"show_toc_level": 2, "navigation_with_keys": False}
copybutton_exclude = ".linenos, .gp, .go"
# publishers refuse programs that ask, and what a DOI names stays
linkcheck_ignore = [r"https://doi\.org/"]
linkcheck_retries = 3

# Where the pages of other projects lie, by the first word of a name. Written down instead of fetched, so that the
# build needs no network and gives the same pages everywhere.
FOREIGN_PAGES = {
    "anndata": "https://anndata.readthedocs.io/en/stable/generated/{name}.html",
    "matplotlib": "https://matplotlib.org/stable/api/_as_gen/{name}.html",
    "numpy": "https://numpy.org/doc/stable/reference/generated/{name}.html",
    "pandas": "https://pandas.pydata.org/docs/reference/api/{name}.html",
    "scanpy": "https://scanpy.readthedocs.io/en/stable/generated/{name}.html",
    "scipy": "https://docs.scipy.org/doc/scipy/reference/generated/{name}.html",
}
# Names whose page is not called after them.
FOREIGN_EXCEPTIONS = {
    "numpy.random.Generator": "https://numpy.org/doc/stable/reference/random/generator.html",
    "scanpy.settings.autoshow": "https://scanpy.readthedocs.io/en/stable/api/settings.html",
    "pyro.param": "https://docs.pyro.ai/en/stable/primitives.html",
    "torch.Tensor": "https://docs.pytorch.org/docs/stable/tensors.html",
    "collections.abc.Callable": "https://docs.python.org/3/library/collections.abc.html",
    "collections.abc.Mapping": "https://docs.python.org/3/library/collections.abc.html",
    "collections.abc.Sequence": "https://docs.python.org/3/library/collections.abc.html",
    "pathlib.Path": "https://docs.python.org/3/library/pathlib.html",
    "Ellipsis": "https://docs.python.org/3/library/constants.html",
    "typing.Any": "https://docs.python.org/3/library/typing.html",
}
# Annotations whose imports could not be followed keep their short names.
SHORT_NAMES = {
    "AnnData": "anndata.AnnData",
    "Axes": "matplotlib.axes.Axes",
    "Figure": "matplotlib.figure.Figure",
    "Mapping": "collections.abc.Mapping",
    "Sequence": "collections.abc.Sequence",
    "Tensor": "torch.Tensor",
    "np.ndarray": "numpy.ndarray",
    "np.random.Generator": "numpy.random.Generator",
    "pd.DataFrame": "pandas.DataFrame",
    "pd.Series": "pandas.Series",
}
BUILTINS = {"bool", "dict", "float", "int", "list", "None", "object", "str", "tuple"}


def link_foreign_names(app, env, node, contnode):
    """Link a name of another project to its page there."""
    target = SHORT_NAMES.get(node.get("reftarget", ""), node.get("reftarget", ""))
    if target in BUILTINS:
        address = f"https://docs.python.org/3/library/{'constants' if target == 'None' else 'stdtypes'}.html"
    elif target in FOREIGN_EXCEPTIONS:
        address = FOREIGN_EXCEPTIONS[target]
    else:
        page = FOREIGN_PAGES.get(target.partition(".")[0])
        if page is None or "." not in target:
            return None
        address = page.format(name=target)
    reference = nodes.reference("", "", contnode, internal=False, refuri=address)
    reference["reftitle"] = target
    return reference


def copy_tutorials(app, config):
    """Bring the notebooks from the top of the repository to where Sphinx finds them."""
    target = HERE / "tutorials"
    target.mkdir(exist_ok=True)
    notebooks = sorted((HERE.parent / "tutorials").glob("*.ipynb"))
    for stale in {path.name for path in target.glob("*.ipynb")} - {path.name for path in notebooks}:
        (target / stale).unlink()
    for notebook in notebooks:
        shutil.copy2(notebook, target / notebook.name)


def copy_mathjax(app, config):
    """Bring MathJax and its licence to the files that every build takes along, or take an earlier copy away."""
    target = HERE / "_static" / "mathjax"
    shutil.rmtree(target, ignore_errors=True)
    if MATHJAX.exists():
        target.mkdir()
        for name in ("es5/tex-svg.js", "LICENSE"):
            shutil.copy2(MATHJAX / name, target)


def drop_stray_colon(app, what, name, obj, options, lines):
    """Undo what sphinx_autodoc_typehints adds for napoleon's own reading of Returns, which is not used here."""
    for position, (first, second, third) in enumerate(zip(lines, lines[1:], lines[2:], strict=False)):
        if first == "Returns" and second.strip("-") == "" and third == ":":
            del lines[position + 2]
            return


def drop_return_of_classes(app, what, name, obj, options, signature, annotation):
    """A class returns itself, not what its `__init__` does."""
    if what != "class":
        return None
    shown = process_signature(app, what, name, obj, options, signature, annotation)
    return None if shown is None else (shown[0].removesuffix(" -> None"), None)


def setup(app):
    """Register the functions above."""
    app.connect("autodoc-process-signature", drop_return_of_classes, priority=400)
    app.connect("autodoc-process-docstring", drop_stray_colon, priority=499)
    app.connect("config-inited", copy_tutorials)
    app.connect("config-inited", copy_mathjax)
    app.connect("missing-reference", link_foreign_names)
