"""Likelihoods as array mathematics: no Pyro, no AnnData. One file each.

Those of `CONTINUOUS` are centred at eta, with a scale sigma. Those of `COUNTS` see eta through `rate = exp(eta)` and a
dispersion; each has the same functions, so that the table is all that inference and scoring know: a new one is a file
and a line.
"""

from types import ModuleType

from . import bernoulli, negative_binomial, normal, poisson, student_t

CONTINUOUS = ("normal", "student_t")
COUNTS: dict[str, ModuleType] = {
    "poisson": poisson,
    "negative_binomial": negative_binomial,
    "bernoulli": bernoulli,
}

__all__ = ["CONTINUOUS", "COUNTS", "bernoulli", "negative_binomial", "normal", "poisson", "student_t"]
