"""Adapters as PEFT stores them, and weights with adapters merged into them, region by region, as they are read.

Names and layouts here are those of transformers, so everything that PEFT can express has a place. HuggingFaceWeights
turns the updates into our layout, as it does with a model's tensors.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from codegen_jax.data.tokenizer import Tokenizer
from codegen_jax.errors import require
from codegen_jax.weights.base import FoldedWeights, Index, Weights, shapes
from codegen_jax.weights.finite import cast, is_finite, nonfinite_kinds
from codegen_jax.weights.huggingface_layout import (
    PROJECTIONS,
    TOP,
    HuggingFaceWeights,
    read_projection,
    tensor_in_layer,
    tensor_shapes,
)
from codegen_jax.weights.tensors import Tensor

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Update:
    """The update of a matrix, scale * B A: a tensor [out, in] of which each region is computed when it is read.

    Attributes:
        a: [rank, in].
        b: [out, rank].
        scale: alpha / rank, or alpha / sqrt(rank).
        magnitude: DoRA's norm of each row of the updated matrix (Liu et al. 2024, arXiv 2402.09353); None for LoRA.
    """

    a: np.ndarray
    b: np.ndarray
    scale: float
    magnitude: np.ndarray | None = None
    dtype = np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.b.shape[0], self.a.shape[1])

    def __getitem__(self, index: Any) -> np.ndarray:
        rows, columns = index
        return self.scale * (self.b[rows].astype(np.float32) @ self.a[:, columns].astype(np.float32))


@dataclass(frozen=True)
class Rows:
    """Trained rows of an embedding or head: `values[n]` replaces row `ids[n]`."""

    ids: Sequence[int]
    values: np.ndarray


@dataclass(frozen=True)
class Adapter:
    """An adapter; all dicts are keyed by the name of the tensor that they change, in transformers.

    Attributes:
        source: the folder, for messages.
        config: the contents of adapter_config.json.
        mp_num: groups of qkv_proj, as in the model that it belongs to.
        updates: low-rank updates, added to the tensor.
        replaced: whole tensors instead of the model's (PEFT's modules_to_save).
        rows: single rows instead of the model's (PEFT's trainable_token_indices).
        tokenizer: the adapter's tokenizer, if its folder has one.
    """

    source: str
    config: dict[str, Any]
    mp_num: int
    updates: dict[str, Update]
    replaced: dict[str, np.ndarray] = field(default_factory=dict)
    rows: dict[str, Rows] = field(default_factory=dict)
    tokenizer: Tokenizer | None = None

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """All values that the adapter has of its own, by name."""
        found = dict(self.replaced)
        for name, rows in self.rows.items():
            found[f"{name} of tokens"] = rows.values
        for name, update in self.updates.items():
            found |= {f"lora_A of {name}": update.a, f"lora_B of {name}": update.b}
            if update.magnitude is not None:
                found[f"lora_magnitude_vector of {name}"] = update.magnitude
        return found

    def require_finite(self) -> None:
        """Raise `UserError` for NaN or infinity."""
        for name, array in self.arrays.items():
            require(
                is_finite(array),
                f"{self.source}: {name} contains {nonfinite_kinds(array)}: the run diverged, or the file is damaged; "
                "use an earlier checkpoint or download it again",
            )

    def for_model(self, weights: Weights) -> "Adapter":
        """The adapter without copies of the model's own tensors, which PEFT saves along with an adapted lm_head."""
        copies = {TOP[name]: name for name in ("head", "head_bias") if TOP["head"] in self.updates}
        own = {tensor: self.replaced[tensor] for tensor in copies.keys() & self.replaced.keys()}
        for tensor, name in copies.items():
            if tensor in own:
                whole = tuple(slice(0, size) for size in shapes(weights.config)[name])
                stored = source_of(weights).read(name, whole).astype(np.float32).T
                if np.array_equal(own[tensor], stored.astype(own[tensor].dtype)):  # PEFT may have cast the model
                    del own[tensor]
        kept = {tensor: value for tensor, value in self.replaced.items() if tensor not in copies}
        return replace(self, replaced=kept | own)

    def astype(self, dtype: np.dtype) -> "Adapter":
        """The adapter with all values in another dtype.

        Raises:
            UserError: if a value exceeds the dtype's range.
        """

        def to(name: str, value: np.ndarray) -> np.ndarray:
            return cast(value, dtype, f"dtype: {dtype.name}: {name} in {self.source}", "use bfloat16 or float32")

        def update_to(name: str, update: Update) -> Update:
            magnitude = None if update.magnitude is None else to(name, update.magnitude)
            return replace(update, a=to(name, update.a), b=to(name, update.b), magnitude=magnitude)

        return replace(
            self,
            updates={name: update_to(name, update) for name, update in self.updates.items()},
            replaced={name: to(name, value) for name, value in self.replaced.items()},
            rows={name: replace(rows, values=to(name, rows.values)) for name, rows in self.rows.items()},
        )


class _Changes:
    """An adapter's changes, read in our layout."""

    def __init__(self, adapter: Adapter, weights: Weights, factor: float):
        self.adapter, self.factor, self.config = adapter, factor, weights.config
        has_magnitudes = any(update.magnitude is not None for update in adapter.updates.values())
        require(
            factor == 1 or not (adapter.replaced or adapter.rows or has_magnitudes),
            f"{adapter.source}: has a weight of {factor:g}, but replaces weights (DoRA, modules_to_save or "
            "trainable_token_indices), so its weight must be 1",
        )

    @cached_property
    def updates(self) -> HuggingFaceWeights:
        return self._filled(self.adapter.updates)

    @cached_property
    def replaced(self) -> HuggingFaceWeights:
        return self._filled(self.adapter.replaced)

    def _filled(self, tensors: Mapping[str, Tensor]) -> HuggingFaceWeights:
        absent = {name: np.broadcast_to(np.float32(0), shape) for name, shape in tensor_shapes(self.config).items()}
        return HuggingFaceWeights({**absent, **tensors}, self.config, self.adapter.mp_num, source=self.adapter.source)

    def apply(self, name: str, tensor: str, index: Index, before: Callable[[Index], np.ndarray]) -> np.ndarray:
        """A region of a parameter after these changes.

        Args:
            name: our parameter.
            tensor: the tensor that contains the region, which is part of one layer.
            index: the region.
            before: reads a region as it is before these changes, as float32.
        """
        update = self.adapter.updates.get(tensor)
        is_replaced = tensor in self.adapter.replaced
        read = lambda index: self.replaced.read(name, index).astype(np.float32) if is_replaced else before(index)
        if update is None:
            region = read(index)
        elif update.magnitude is None:
            region = read(index) + np.float32(self.factor) * self.updates.read(name, index)
        else:
            inputs = {"blocks.attention_out": (1, 2), "head": (0,)}.get(name, (1,))
            sizes = shapes(self.config)[name]
            whole = tuple(slice(0, size) if axis in inputs else s for axis, (s, size) in enumerate(zip(index, sizes)))
            full = read(whole) + self.updates.read(name, whole)
            norms = np.sqrt(np.square(full).sum(inputs, keepdims=True))
            part = tuple(s if axis in inputs else slice(None) for axis, s in enumerate(index))
            region = full[part] * (self._magnitude(name, update.magnitude, index) / norms)
        rows = self.adapter.rows.get(tensor)
        if rows is not None:
            axis = 0 if name == "embedding" else 1  # of the vocabulary
            others = index[1 - axis]
            for id, values in zip(rows.ids, rows.values, strict=True):
                if index[axis].start <= id < index[axis].stop:
                    place = id - index[axis].start
                    region = region.copy() if not region.flags.writeable else region
                    region[(place,) if axis == 0 else (slice(None), place)] = values[others]
        return region

    def _magnitude(self, name: str, magnitude: np.ndarray, index: Index) -> np.ndarray:
        """A region's magnitudes, in the shape of the region except for its input axes, which are 1."""
        if name not in PROJECTIONS:
            return magnitude[index[-1]].astype(np.float32)
        region_DHK = np.empty((1, *(s.stop - s.start for s in index[2:])), np.float32)
        column = magnitude.astype(np.float32)[:, None]
        read_projection(self.config, self.adapter.mp_num, name, column, (slice(0, 1), *index[2:]), region_DHK)
        return region_DHK[None]


class AdaptedWeights(Weights):
    """A model's weights with adapters merged in, in order. Changed parameters are float32, so they are cast only once.

    Args:
        weights: the model.
        adapters: adapters for a model of these sizes, each with a factor of its updates.
        tokenizer: replaces that of the model, such as the one with which a run was trained.

    Raises:
        UserError: if an adapter that replaces weights has a factor other than 1.
    """

    def __init__(self, weights: Weights, adapters: Sequence[tuple[Adapter, float]], tokenizer: Tokenizer | None = None):
        adapters = [(adapter.for_model(weights), factor) for adapter, factor in adapters]
        names = [adapter.source + ("" if factor == 1 else f" x {factor:g}") for adapter, factor in adapters]
        super().__init__(" + ".join([weights.source, *names]), weights.config, tokenizer or weights.tokenizer)
        self.weights, self.generation_config = weights, weights.generation_config
        self.changes = [_Changes(adapter, weights, factor) for adapter, factor in adapters]
        self.changed = {
            name
            for adapter, _ in adapters
            for changed in (adapter.updates, adapter.replaced, adapter.rows)
            for name in changed
        }
        self.adapters = [adapter for adapter, _ in adapters]
        self.factors = [factor for _, factor in adapters]
        for adapter in self.adapters:
            if adapter.tokenizer is None:
                continue
            if self.tokenizer is None or adapter.tokenizer.extends(self.tokenizer):
                self.tokenizer = adapter.tokenizer
            elif not self.tokenizer.extends(adapter.tokenizer):
                log.warning(f"{adapter.source}: its tokenizer is not that of {weights.source}, which is used")

    def dtype(self, name: str) -> np.dtype:
        layers = range(self.config.n_layer)
        tensors = {TOP[name]} if name in TOP else {tensor_in_layer(layer, name) for layer in layers}
        return np.dtype(np.float32) if tensors & self.changed else self.weights.dtype(name)

    def read(self, name: str, index: Index) -> np.ndarray:
        if name in TOP:
            return self._read_part(name, TOP[name], index)
        parts = []
        for layer in range(index[0].start, index[0].stop):
            of_layer = (slice(layer, layer + 1), *index[1:])
            parts.append(self._read_part(name, tensor_in_layer(layer, name), of_layer))
        return np.concatenate([part.astype(self.dtype(name), copy=False) for part in parts])

    def _read_part(self, name: str, tensor: str, index: Index) -> np.ndarray:
        if tensor not in self.changed:
            return self.weights.read(name, index)
        return self._merged(name, tensor, index, len(self.changes))

    def _merged(self, name: str, tensor: str, index: Index, count: int) -> np.ndarray:
        """A region with the first `count` adapters, as float32."""
        if count == 0:
            return self.weights.read(name, index).astype(np.float32)
        before = lambda index: self._merged(name, tensor, index, count - 1)
        return self.changes[count - 1].apply(name, tensor, index, before)


def source_of(weights: Weights) -> Weights:
    """The weights as they are stored: without adapters, and without folding."""
    while isinstance(weights, AdaptedWeights | FoldedWeights):
        weights = weights.weights
    return weights
