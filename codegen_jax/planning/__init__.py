"""Predict whether a run fits an absent TPU slice, and how fast it would be."""
