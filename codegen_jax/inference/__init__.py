"""Inference: from a checkpoint to text."""
