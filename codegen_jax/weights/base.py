"""Interface to a model's weights in any format and layout: our parameters, read region by region.

A region is the dotted name of a parameter ("blocks.query") and a tuple of slices, the form in which JAX requests a
shard. A host therefore reads only its devices' shards, and a conversion needs memory for only a chunk of a parameter.
"""

import dataclasses
import itertools
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import cache
from math import prod
from typing import Any

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

from codegen_jax.config import CodeGenConfig
from codegen_jax.data.tokenizer import Tokenizer
from codegen_jax.errors import UserError
from codegen_jax.model.codegen import Params, abstract_params, param_axes
from codegen_jax.weights.fingerprint import fingerprints
from codegen_jax.weights.finite import cast, is_finite, nonfinite_kinds
from codegen_jax.weights.generation_config import GenerationConfig

log = logging.getLogger(__name__)

Index = tuple[slice, ...]
Bounds = tuple[tuple[int, int], ...]


class Weights(ABC):
    """One model in a folder.

    Attributes:
        source: the folder, for messages.
        config: the model config. If the folder does not specify a compute dtype, it is float32 for float32 weights and
            bfloat16 for others.
        tokenizer: the tokenizer, or None if the folder has none.
        generation_config: the folder's settings for completions: the special token ids in config.json, and all of
            generation_config.json; empty if there are none.
        fingerprints: fingerprints by parameter name if the format stores them, else empty.
    """

    def __init__(self, source: str, config: CodeGenConfig, tokenizer: Tokenizer | None):
        self.source, self.config, self.tokenizer = source, config, tokenizer
        self.generation_config: GenerationConfig = {}
        self.fingerprints: dict[str, int] = {}

    @abstractmethod
    def dtype(self, name: str) -> np.dtype:
        """The dtype in which a parameter is stored."""

    @abstractmethod
    def read(self, name: str, index: Index) -> np.ndarray:
        """Read a region of a parameter, in our layout and the stored dtype. Every slice has a start and a stop."""

    def check(self, found: dict[str, int]) -> None:  # noqa: B027
        """Raise `UserError` if these fingerprints of parameters differ from the stored ones."""


class StoredWeights(Weights):
    """Weights in files. Reading a region with NaN or infinity is an error, since one such weight makes the logits NaN.

    Attributes:
        allow_nonfinite: whether to return such regions anyway, with a warning about the first one.
    """

    allow_nonfinite = False
    has_warned = False

    @abstractmethod
    def read_stored(self, name: str, index: Index) -> np.ndarray:
        """Like `read`, but without the check for finite values."""

    def stored_name(self, name: str, layer: int | None) -> str:
        """The name of a parameter, or of one of its layers, in the files."""
        return name if layer is None else f"{name} of layer {layer}"

    def read(self, name: str, index: Index) -> np.ndarray:
        """See the base class.

        Raises:
            UserError: if the region contains NaN or infinity, unless `allow_nonfinite` is set.
        """
        region = self.read_stored(name, index)
        if not self.has_warned and not is_finite(region):
            self._report_nonfinite(name, index, region)
        return region

    def _report_nonfinite(self, name: str, index: Index, region: np.ndarray) -> None:
        layer = None
        if name.startswith("blocks."):
            offset = next(offset for offset, values in enumerate(region) if not is_finite(values))
            layer, region = index[0].start + offset, region[offset]
        problem = f"{self.source}: {self.stored_name(name, layer)} contains {nonfinite_kinds(region)}"
        if not self.allow_nonfinite:
            raise UserError(
                f"{problem}: the run diverged, or the file is damaged; use an earlier checkpoint or download it again "
                "(generate, convert and evaluate accept such weights with --allow-nonfinite)"
            )
        self.has_warned = True
        log.warning(f"{problem}; the weights are used unchanged, so results will be meaningless")


class FoldedWeights(Weights):
    """Weights with the embedding bias added to every row of the embedding, as in the authors' releases."""

    def __init__(self, weights: Weights):
        super().__init__(weights.source, dataclasses.replace(weights.config, embedding_bias=False), weights.tokenizer)
        self.weights, self.generation_config = weights, weights.generation_config

    def dtype(self, name: str) -> np.dtype:
        return self.weights.dtype(name)

    def read(self, name: str, index: Index) -> np.ndarray:
        region = self.weights.read(name, index)
        if name == "embedding":
            bias_D = self.weights.read("embedding_bias", index[1:])
            folded = region.astype(np.float32) + bias_D.astype(np.float32)
            name = f"{self.source}: the {region.dtype.name} embedding, after adding its bias,"
            region = cast(folded, region.dtype, name, "save the arrays in a wider dtype")
        return region


def fold_embedding_bias(weights: Weights) -> Weights:
    return FoldedWeights(weights) if weights.config.embedding_bias else weights


@cache
def shapes(config: CodeGenConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters by dotted name."""
    leaves = jax.tree_util.tree_leaves_with_path(abstract_params(config))
    return {dotted(path): leaf.shape for path, leaf in leaves}


@cache
def axes_by_name(config: CodeGenConfig) -> dict[str, tuple[str, ...]]:
    """Logical axes of the parameters by dotted name."""
    is_axes = lambda node: isinstance(node, tuple)
    leaves = jax.tree_util.tree_leaves_with_path(param_axes(config), is_leaf=is_axes)
    return {dotted(path): axes for path, axes in leaves}


@cache
def matrix_shapes(config: CodeGenConfig) -> dict[str, tuple[int, ...]]:
    """Shapes with heads and head_dim merged into one axis, as in every other format."""

    def merged(shape: tuple[int, ...], axes: tuple[str, ...]) -> tuple[int, ...]:
        if "heads" not in axes:
            return shape
        H = axes.index("heads")
        return (*shape[:H], shape[H] * shape[H + 1], *shape[H + 2 :])

    return {name: merged(shape, axes_by_name(config)[name]) for name, shape in shapes(config).items()}


def dotted(path: jax.tree_util.KeyPath) -> str:
    """The dotted name of a leaf of the parameter tree."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def stored_bytes(weights: Weights) -> int:
    """Bytes of all parameters in the dtypes in which they are stored."""
    return sum(prod(shape) * weights.dtype(name).itemsize for name, shape in shapes(weights.config).items())


def chunk_indices(shape: tuple[int, ...], chunk: tuple[int, ...]) -> Iterator[Index]:
    """Yield the regions of a grid of chunks, in order."""
    for starts in itertools.product(*(range(0, size, step) for size, step in zip(shape, chunk, strict=True))):
        yield tuple(slice(a, min(a + step, size)) for a, step, size in zip(starts, chunk, shape, strict=True))


def load_params(weights: Weights, abstract: Params, progress: Callable[[int], object] = lambda nbytes: None) -> Params:
    """Load all parameters with the dtypes and shardings of `abstract`; without a sharding, onto the first device.

    An embedding bias that the weights lack is set to 0; one that `abstract` lacks is folded into the embedding.

    Args:
        progress: called with the size of each region that was read; the total is `local_bytes(abstract)`.
    """
    if "embedding_bias" not in abstract:
        weights = fold_embedding_bias(weights)

    def load(path: jax.tree_util.KeyPath, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name = dotted(path)

        @cache  # replicas request the same region
        def region(*bounds: tuple[int, int]) -> np.ndarray:
            if name == "embedding_bias" and not weights.config.embedding_bias:
                values = np.zeros([stop - start for start, stop in bounds], leaf.dtype)
            else:
                values = weights.read(name, tuple(slice(*pair) for pair in bounds)).astype(leaf.dtype, copy=False)
            progress(values.nbytes)
            return values

        def shard(index: Index | None) -> np.ndarray:
            assert index is not None
            return region(*_bounds(index, leaf.shape))

        return jax.make_array_from_callback(leaf.shape, _sharding(leaf), shard)

    params = jax.tree_util.tree_map_with_path(load, abstract)
    if weights.fingerprints and jax.process_count() > 1:  # no single process has read all regions
        sizes = {dotted(path): leaf.dtype.itemsize for path, leaf in jax.tree_util.tree_leaves_with_path(abstract)}
        whole = {name for name in sizes.keys() & weights.fingerprints if sizes[name] >= weights.dtype(name).itemsize}
        weights.check({name: value for name, value in fingerprints(params).items() if name in whole})
    return params


def local_bytes(abstract: Params) -> int:
    """Bytes of the regions that `load_params` reads for this process's devices."""
    total = 0
    for leaf in jax.tree.leaves(abstract):
        indices = _sharding(leaf).addressable_devices_indices_map(leaf.shape).values()
        regions = {_bounds(index, leaf.shape) for index in indices if index is not None}
        total += leaf.dtype.itemsize * sum(prod(stop - start for start, stop in bounds) for bounds in regions)
    return total


def _sharding(leaf: jax.ShapeDtypeStruct) -> Any:
    return leaf.sharding or SingleDeviceSharding(jax.devices()[0])


def _bounds(index: Index, shape: tuple[int, ...]) -> Bounds:
    return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))
