"""A hash that distinguishes models without reading all of their weights."""

import hashlib

import numpy as np

from codegen_jax.weights.adapter import AdaptedWeights, source_of
from codegen_jax.weights.base import FoldedWeights, Weights, fold_embedding_bias, shapes

SAMPLED = 64  # elements read per axis of a parameter; of stacked blocks, only the last one is read


def sampled_hash(weights: Weights) -> str:
    """A hash of a part of each stored parameter, and of the adapters merged into them.

    Training changes every part, so this distinguishes models without reading all weights. Merged values do not enter,
    since their last bits depend on the machine.
    """
    digest = hashlib.sha256()
    folded = fold_embedding_bias(source_of(weights))
    for name, shape in sorted(shapes(folded.config).items()):
        index = [slice(0, min(size, SAMPLED)) for size in shape]
        if name.startswith("blocks."):
            index[0] = slice(shape[0] - 1, shape[0])
        digest.update(np.ascontiguousarray(folded.read(name, tuple(index)), np.float32).tobytes())
    while isinstance(weights, AdaptedWeights | FoldedWeights):
        for adapter, factor in zip(weights.adapters, weights.factors) if isinstance(weights, AdaptedWeights) else ():
            scales = sorted((name, update.scale) for name, update in adapter.updates.items())
            digest.update(f"{factor} {adapter.mp_num} {scales}".encode())
            for name, array in sorted(adapter.arrays.items()):
                digest.update(name.encode() + np.ascontiguousarray(array, np.float32).tobytes())
        weights = weights.weights
    return digest.hexdigest()[:16]
