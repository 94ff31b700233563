"""Likelihoods as array mathematics: no Pyro, no AnnData. One file each, and a line in the table.

`LIKELIHOODS` is all that inference, the posterior and the tools know, by name. `COUNTS` are those that see eta through
`rate = exp(eta)`, `CONTINUOUS` those whose values are numbers about eta itself; neither holds for levels.
"""

from . import bernoulli, negative_binomial, normal, ordinal, poisson, student_t
from .base import MAX_LOG_RATE, Law, Likelihood
from .negative_binomial import OfCounts

LIKELIHOODS: dict[str, Likelihood] = {
    each.name: each
    for each in (
        normal.NORMAL,
        student_t.STUDENT_T,
        poisson.POISSON,
        negative_binomial.NEGATIVE_BINOMIAL,
        bernoulli.BERNOULLI,
        ordinal.ORDINAL,
    )
}
COUNTS = {name: likelihood for name, likelihood in LIKELIHOODS.items() if likelihood.has_rate}
CONTINUOUS = tuple(name for name, likelihood in LIKELIHOODS.items() if likelihood.linear)

__all__ = [
    "CONTINUOUS",
    "COUNTS",
    "LIKELIHOODS",
    "MAX_LOG_RATE",
    "Law",
    "Likelihood",
    "OfCounts",
    "bernoulli",
    "negative_binomial",
    "normal",
    "ordinal",
    "poisson",
    "student_t",
]
