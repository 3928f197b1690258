"""Which model was evaluated: enough to know it again, and to know another one."""

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from codegen_jax.weights.base import StoredWeights, fold_embedding_bias, shapes

SAMPLED = 64  # elements of each axis of a parameter, and of its blocks the last one


def model_identity(model: str, weights: StoredWeights) -> dict[str, Any]:
    """Name, revision (a commit of the hub, or a run's step), sizes, tokenizer, and a hash of a part of each parameter.

    Training changes every part of every parameter, so a part of each tells two models apart without reading all.
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
