"""The arguments of `tl.fit`: how each is checked, stored in `params` and read back, and asked for from a shell.

All of that follows from one line for each here; its signature says them to users. Nothing heavy is imported, so that
`scvi-lfm fit --help` is quick.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from os import PathLike

    import numpy as np
    import scipy.sparse as sp

AUTO = "auto"
# of the options of `scvi-lfm fit`, in the order of its help
READ, MODEL, FITTING, WRITTEN = "what is read", "the model", "how it is fitted", "what is written"
CONTINUOUS = ("normal", "student_t")
LIKELIHOODS = (AUTO, *CONTINUOUS, "poisson", "negative_binomial", "bernoulli", "ordinal")
NOISES = ("shared", "gene", "cell_gene")
OBSERVED = ("all", "stored")
FAMILIES = ("row_block", "mean_field")
ENGINES = ("natural_gradient", "pyro")
# what `params` hold for an array that was passed, and for a program
ARRAY, CALLABLE = "array", "callable"


@dataclass(frozen=True)
class Argument:
    """What is known of an argument besides its default."""

    choices: tuple[str, ...] = ()  # it is one of these
    minimum: int | None = None  # it is a whole number, at least this
    words: tuple[str, ...] = ()  # or one of these
    positive: bool = False  # it is a number above 0
    whole: bool = False  # and an int where it is one
    # in `params`: the "value", which there always is; a "number" where one was passed; the "name" passed, or a word for
    # what has none; names of "columns", "scales" or a "seed"; empty where they do not have it
    stored: str = "value"
    only: tuple[str, tuple[str, ...]] | None = None  # another argument, and its values that this one belongs to
    reads: str = ""  # what it names a field of that tools read again: "layers" or "obs"
    help: str = ""  # of the option; without, a shell cannot ask for it
    group: str = FITTING  # of options; it is listed with them
    option: str = ""  # its name where that differs
    alone: float | None = None  # what the option means where no value follows it
    metavar: str = ""

    @property
    def always(self) -> bool:
        """Whether `params` of every fit have it."""
        return self.stored == "value" and self.only is None

    def number(self, value: float) -> float:
        """A number as Python has it."""
        return int(value) if self.minimum is not None or (self.whole and value == int(value)) else float(value)

    def belongs(self, given: FitArguments) -> bool:
        """Whether the others are such that it means something."""
        return self.only is None or getattr(given, self.only[0]) in self.only[1]


def _given(default: object, **known: Any) -> Any:
    return field(default=default, metadata={"argument": Argument(**known)})


@dataclass(frozen=True)
class FitArguments:
    """The arguments of :func:`scvi_lfm.tl.fit` but for the data: as given, or once every choice is made."""

    n_factors: int | str = _given(
        30, minimum=0, words=(AUTO,), group=MODEL, help="number of factors, or auto", metavar="N"
    )
    layer: str | None = _given(
        None, stored="name", reads="layers", group=READ, help="layer to read (default: X)", metavar="NAME"
    )
    normalize: float | None = _given(
        None,
        stored="number",
        positive=True,
        group=READ,
        help="fit log1p of counts scaled to a total of 10,000, or TOTAL, in each cell, as they are read",
        alone=1e4,
        metavar="TOTAL",
    )
    likelihood: str = _given(
        AUTO, choices=LIKELIHOODS, group=MODEL, help="'auto': negative_binomial for whole numbers, else normal"
    )
    noise: str = _given(
        "shared",
        choices=NOISES,
        only=("likelihood", CONTINUOUS),
        group=MODEL,
        help="of normal and student_t: one level, one for each gene, or one for each cell and gene",
    )
    observed: str = _given(
        "all",
        choices=OBSERVED,
        group=READ,
        help="whether all entries are data, or only those that a sparse matrix stores, as of ratings",
    )
    held_out: str | sp.csr_array | None = _given(None, stored="name", reads="layers")
    covariates: Sequence[str] | str | None = _given(
        None,
        stored="columns",
        reads="obs",
        group=READ,
        help="columns of obs to tell apart from the cells, such as batch",
        metavar="COLUMN",
    )
    size_factors: np.ndarray | str | None = _given(
        None,
        stored="name",
        group=READ,
        help="for counts: column of obs with the cells' size factors (default: total counts over their mean)",
        metavar="COLUMN",
    )
    mask_var: np.ndarray | str | None = _given(
        None, stored="name", group=READ, help="boolean column of var: the genes to fit (default: all)", metavar="COLUMN"
    )
    family: str = _given(
        "row_block",
        choices=FAMILIES,
        help="row_block: one posterior for all numbers of a cell or gene; mean_field: one for each number",
    )
    engine: str = _given(
        "natural_gradient",
        choices=ENGINES,
        help="natural_gradient: steps in closed form; pyro: black-box gradients, slower",
    )
    guide: str | Callable[..., Any] | None = _given(None, stored="name", only=("engine", ("pyro",)))
    learning_rate: float | None = _given(None, positive=True, only=("engine", ("pyro",)))
    prior_scales: Mapping[str, Any] | None = _given(None, stored="scales")
    batch_size: int | None = _given(None, minimum=2, help="cells in a minibatch (default: chosen)", metavar="N")
    max_epochs: float | None = _given(
        None,
        positive=True,
        whole=True,
        help="readings of all cells at most, such as 20 or 0.5 (default: chosen)",
        metavar="N",
    )
    tol: float = _given(0.005, positive=True, help="share of the gain that may be missing at the end")
    device: str = _given(AUTO, help="'auto', 'cpu', 'cuda' or 'cuda:1'")
    checkpoint: str | PathLike[str] | None = _given(
        None,
        stored="",
        only=("engine", ("natural_gradient",)),
        help="file to keep the state of the fit in, from which the same command goes on",
        metavar="FILE",
    )
    rng: int | np.random.Generator = _given(
        0, stored="seed", help="seed of all random numbers", option="seed", metavar="N"
    )
    progress: bool = _given(default=True, stored="")
    key_added: str = _given(
        "lfm",
        stored="",
        group=WRITTEN,
        help="stem of the names that the fit is stored under",
        option="key",
        metavar="KEY",
    )
    copy: bool = _given(default=False, stored="")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> FitArguments:
        """Arguments from values by name, others among them."""
        return cls(**{name: values[name] for name in ARGUMENTS})

    def named(self, names: Sequence[str] = ()) -> dict[str, Any]:
        """The arguments by name: those of `names` that there are, or all."""
        return {name: getattr(self, name) for name in ARGUMENTS if name in names or not names}


ARGUMENTS: dict[str, Argument] = {each.name: each.metadata["argument"] for each in fields(FitArguments)}
DEFAULTS: dict[str, Any] = {each.name: each.default for each in fields(FitArguments)}
