"""Closed-form inference for the Normal likelihood with all entries observed: one matrix serves all cells."""
