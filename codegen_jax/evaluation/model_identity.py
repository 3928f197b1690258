"""Identify the evaluated model, so it can be distinguished from any other."""

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from codegen_jax.weights.base import StoredWeights, fold_embedding_bias, shapes

SAMPLED = 64  # elements read per axis of a parameter; of stacked blocks, only the last one is read


def model_identity(model: str, weights: StoredWeights) -> dict[str, Any]:
    """The model's name, revision (a hub commit or a run's step), config, tokenizer and a hash of its parameters.

    The hash covers a part of each parameter: training changes every part, so this distinguishes models without
    reading all weights.
    """
    source = Path(weights.source)
    revision = source.name if source.parent.name in ("snapshots", "checkpoints") else ""
    return {
        "model": model,
        "revision": revision,
        "config": asdict(weights.config),
        "weights": _hash(weights),
        "tokenizer": weights.tokenizer.fingerprint if weights.tokenizer else "",
    }


def _hash(weights: StoredWeights) -> str:
    digest = hashlib.sha256()
    folded = fold_embedding_bias(weights)
    for name, shape in sorted(shapes(folded.config).items()):
        index = [slice(0, min(size, SAMPLED)) for size in shape]
        if name.startswith("blocks."):
            index[0] = slice(shape[0] - 1, shape[0])
        digest.update(np.ascontiguousarray(folded.read(name, tuple(index)), np.float32).tobytes())
    return digest.hexdigest()[:16]
