"""A hash that distinguishes models without reading all of their weights."""

import hashlib

import numpy as np

from codegen_jax.weights.adapter import AdaptedWeights
from codegen_jax.weights.base import Weights, fold_embedding_bias, shapes

SAMPLED = 64  # elements read per axis of a parameter; of stacked blocks, only the last one is read


def sampled_hash(weights: Weights) -> str:
    """A hash of a part of each parameter, and of all values of the adapters merged into a model.

    Training changes every part, so this distinguishes models without reading all weights.
    """
    digest = hashlib.sha256()
    folded = fold_embedding_bias(weights)
    for name, shape in sorted(shapes(folded.config).items()):
        index = [slice(0, min(size, SAMPLED)) for size in shape]
        if name.startswith("blocks."):
            index[0] = slice(shape[0] - 1, shape[0])
        digest.update(np.ascontiguousarray(folded.read(name, tuple(index)), np.float32).tobytes())
    for adapter in weights.adapters if isinstance(weights, AdaptedWeights) else ():
        for array in adapter.arrays.values():
            digest.update(np.ascontiguousarray(array, np.float32).tobytes())
    return digest.hexdigest()[:16]
