"""The normal equations of rows, written out entry by entry: of cells given genes, and of genes given cells."""

from __future__ import annotations

import numpy as np


def rows_by_loops(
    weight: np.ndarray,
    response: np.ndarray,
    others: np.ndarray,
    in_squares: np.ndarray,
    in_products: np.ndarray,
    prior_precision: np.ndarray,
    prior_mean: np.ndarray,
    *,
    mean_field: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Means (rows, k) and covariances (rows, k, k) from `weight` and `response` less mu, (rows, others) each.

    `others` (others, k) holds the means of (b, B), or of (a, A); their covariances (others, k, k) enter E[v v'] and
    E[b v] apart, so that a test can leave either out.
    """
    means, covs = [], []
    for weights, responses in zip(weight, response, strict=True):
        precision, target = prior_precision.copy(), prior_precision @ prior_mean
        for (b, *B), w, z, square, product in zip(others, weights, responses, in_squares, in_products, strict=True):
            v = np.array([1.0, *B])
            vv, bv = np.outer(v, v), b * v
            vv[1:, 1:] += square[1:, 1:]
            bv[1:] += product[0, 1:]
            precision += w * vv
            target += w * z * v - w * bv
        means.append(np.linalg.solve(precision, target))
        covs.append(np.diag(1 / precision.diagonal()) if mean_field else np.linalg.inv(precision))
    return np.array(means), np.array(covs)
