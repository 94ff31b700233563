"""Matrices, and nothing of the model: lower triangles, covariances, inverses of many at once."""
