"""Identify the evaluated model, so it can be distinguished from any other."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from codegen_jax.weights.adapter import source_of
from codegen_jax.weights.base import Weights
from codegen_jax.weights.run_folder import find_checkpoint
from codegen_jax.weights.sampled_hash import sampled_hash


def model_identity(model: str, weights: Weights, adapters: Sequence[str] = ()) -> dict[str, Any]:
    """The model's name with its adapters, revision (a hub commit or a run's step), config, tokenizer and weights' hash.

    The hash is `sampled_hash`.
    """
    checkpoint = find_checkpoint(model)
    source = Path(source_of(weights).source if checkpoint is None else str(checkpoint))
    revision = source.name if source.parent.name in ("snapshots", "checkpoints") else ""
    return {
        "model": " + ".join([model, *adapters]),
        "revision": revision,
        "config": asdict(weights.config),
        "weights": sampled_hash(weights),
        "tokenizer": weights.tokenizer.fingerprint if weights.tokenizer else "",
    }
