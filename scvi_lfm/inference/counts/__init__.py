"""Variational inference for counts: iteratively reweighted least squares with Fisher weights (Khan & Lin 2017)."""
