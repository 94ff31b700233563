"""What the benchmarks of ratings measure against: biases alone, `implicit`, and an oracle. Not run by itself."""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp


@dataclass(frozen=True)
class Entries:
    """Ratings as three columns."""

    row: np.ndarray
    column: np.ndarray
    value: np.ndarray
    shape: tuple[int, int]

    @classmethod
    def of(cls, matrix: sp.csr_matrix) -> "Entries":
        """All stored entries, zeros among them."""
        row = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
        return cls(row, matrix.indices.astype(np.int64), matrix.data.astype(np.float64), matrix.shape)

    def at(self, chosen: np.ndarray) -> "Entries":
        return Entries(self.row[chosen], self.column[chosen], self.value[chosen], self.shape)

    def mask(self) -> sp.csr_matrix:
        ones = np.ones(len(self.row), dtype=bool)
        return sp.csr_matrix((ones, (self.row, self.column)), shape=self.shape)


@dataclass(frozen=True)
class Predicted:
    """Mean and standard deviation of the predictive of each entry."""

    mean: np.ndarray
    sd: np.ndarray


@dataclass(frozen=True)
class Biases:
    """y = mu + a_i + b_j + noise with a and b Normal: variational Bayes, scales learned. A fit without factors."""

    mu: float
    a: np.ndarray
    b: np.ndarray
    var_a: np.ndarray
    var_b: np.ndarray
    sigma: float

    @classmethod
    def fit(cls, train: Entries, n_sweeps: int = 50) -> "Biases":
        (n, m), y = train.shape, train.value
        size_a, size_b = np.bincount(train.row, minlength=n), np.bincount(train.column, minlength=m)
        mu, a, b = y.mean(), np.zeros(n), np.zeros(m)
        noise, scale_a, scale_b = y.var(), 0.1, 0.1
        for _ in range(n_sweeps):
            var_a = 1 / (1 / scale_a + size_a / noise)
            a = var_a * np.bincount(train.row, y - mu - b[train.column], minlength=n) / noise
            var_b = 1 / (1 / scale_b + size_b / noise)
            b = var_b * np.bincount(train.column, y - mu - a[train.row], minlength=m) / noise
            mu += np.mean(y - mu - a[train.row] - b[train.column])
            squares = (y - mu - a[train.row] - b[train.column]) ** 2
            noise = np.mean(squares + var_a[train.row] + var_b[train.column])
            scale_a, scale_b = np.mean(a**2 + var_a), np.mean(b**2 + var_b)
        return cls(float(mu), a, b, var_a, var_b, float(np.sqrt(noise)))

    def predict(self, entries: Entries) -> Predicted:
        i, j = entries.row, entries.column
        mean = self.mu + self.a[i] + self.b[j]
        return Predicted(mean, np.sqrt(self.var_a[i] + self.var_b[j] + self.sigma**2))


def implicit_als(train: Entries, test: Entries, *, n_factors: int, seed: int, iterations: int = 15) -> Predicted:
    """Ratings by `implicit`, which models preferences and not ratings.

    It takes the sign of an entry for liked or not and its size for how sure that is, and everything not stored for not
    liked with confidence 1. So it gets residuals from the biases, and its score (a preference near 0 to 1) is turned
    back into a rating by a straight line, fitted on a tenth of the training entries that it does not see. The standard
    deviation is that of the line's residuals.
    """
    from implicit.als import AlternatingLeastSquares

    held = np.random.default_rng(seed).random(len(train.row)) < 0.1
    rest, line = train.at(~held), train.at(held)
    biases = Biases.fit(rest)
    residual = rest.value - biases.predict(rest).mean
    signed = sp.csr_matrix((residual.astype(np.float32), (rest.row, rest.column)), shape=rest.shape)
    model = AlternatingLeastSquares(factors=n_factors, iterations=iterations, random_state=seed, num_threads=2)
    model.fit(signed, show_progress=False)

    def score(entries: Entries) -> np.ndarray:
        return np.einsum("ek,ek->e", model.user_factors[entries.row], model.item_factors[entries.column])

    design = np.column_stack([np.ones(len(line.row)), score(line)])
    target = line.value - biases.predict(line).mean
    coefficients, *_ = np.linalg.lstsq(design, target, rcond=None)
    sd = np.std(target - design @ coefficients)
    mean = biases.predict(test).mean + coefficients[0] + coefficients[1] * score(test)
    return Predicted(mean, np.full(len(mean), sd))


@dataclass(frozen=True)
class Truth:
    """The parameters that simulated the ratings."""

    mu: float
    b: np.ndarray
    B: np.ndarray
    sigma: float
    kappa_a: float


def oracle(train: Entries, test: Entries, truth: Truth) -> Predicted:
    """The exact predictive given all but the rows' own (a, A): each row is solved from its training entries."""
    v = np.column_stack([np.ones(len(truth.b)), truth.B])
    prior = np.diag(1 / np.r_[truth.kappa_a**2, np.ones(truth.B.shape[1])])
    mean, var = np.empty(len(test.row)), np.empty(len(test.row))
    targets = (train.value - truth.mu - truth.b[train.column]) / truth.sigma
    starts = [np.searchsorted(part.row, np.arange(part.shape[0] + 1)) for part in (train, test)]
    for i in range(train.shape[0]):
        (known, asked) = (slice(start[i], start[i + 1]) for start in starts)
        seen, wanted = v[train.column[known]] / truth.sigma, v[test.column[asked]]
        cov = np.linalg.inv(prior + seen.T @ seen)
        mean[asked] = wanted @ (cov @ (seen.T @ targets[known]))
        var[asked] = np.einsum("ek,kl,el->e", wanted, cov, wanted)
    return Predicted(truth.mu + truth.b[test.column] + mean, np.sqrt(var + truth.sigma**2))


@dataclass(frozen=True)
class Scores:
    """How good some predictions are."""

    rmse: float
    log_density: float
    coverage: float

    @classmethod
    def of(cls, predicted: Predicted, y: np.ndarray, *, clip: tuple[float, float] | None = None) -> "Scores":
        """RMSE of the means, clipped to a range if there is one; density and coverage of the Normal predictives."""
        mean = predicted.mean if clip is None else np.clip(predicted.mean, *clip)
        z = (y - predicted.mean) / predicted.sd
        density = -0.5 * z**2 - np.log(predicted.sd) - 0.5 * np.log(2 * np.pi)
        return cls(float(np.sqrt(np.mean((y - mean) ** 2))), float(density.mean()), float((np.abs(z) < 1.6449).mean()))

    def line(self, name: str, seconds: float) -> str:
        return f"{name:12s} {self.rmse:8.4f} {self.log_density:12.4f} {self.coverage:10.3f} {seconds:9.1f}"


HEADER = f"{'':12s} {'RMSE':>8s} {'log density':>12s} {'cover 90%':>10s} {'seconds':>9s}"
