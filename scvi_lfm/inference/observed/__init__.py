"""Closed-form inference for the Normal likelihood where some entries are not data: a covariance for every row."""
