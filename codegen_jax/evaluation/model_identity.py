"""Identify the evaluated model, so it can be distinguished from any other."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from codegen_jax.weights.adapter import AdaptedWeights
from codegen_jax.weights.base import Weights, fold_embedding_bias, shapes

SAMPLED = 64  # elements read per axis of a parameter; of stacked blocks, only the last one is read


def model_identity(model: str, weights: Weights, adapters: Sequence[str] = ()) -> dict[str, Any]:
    """The model's name with its adapters, revision (a hub commit or a run's step), config, tokenizer and weights' hash.

    The hash covers a part of each parameter: training changes every part, so this distinguishes models without
    reading all weights.
    """
    source = Path((weights.weights if isinstance(weights, AdaptedWeights) else weights).source)
    revision = source.name if source.parent.name in ("snapshots", "checkpoints") else ""
    return {
        "model": " + ".join([model, *adapters]),
        "revision": revision,
        "config": asdict(weights.config),
        "weights": _hash(weights),
        "tokenizer": weights.tokenizer.fingerprint if weights.tokenizer else "",
    }


def _hash(weights: Weights) -> str:
    digest = hashlib.sha256()
    folded = fold_embedding_bias(weights)
    for name, shape in sorted(shapes(folded.config).items()):
        index = [slice(0, min(size, SAMPLED)) for size in shape]
        if name.startswith("blocks."):
            index[0] = slice(shape[0] - 1, shape[0])
        digest.update(np.ascontiguousarray(folded.read(name, tuple(index)), np.float32).tobytes())
    return digest.hexdigest()[:16]
