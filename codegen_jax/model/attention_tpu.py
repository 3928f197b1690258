"""Causal attention on TPUs as two Pallas kernels, forward and backward, for sequences that fit in a core's fast memory.

A step of the grid takes a block of queries of one head, with all keys up to it: the scores of a block are in memory at
once, so a softmax is just a softmax, and only the last square of a block needs the causal mask. There is a branch for
each block, since the number of its keys must be known to the compiler, which then overlaps the products of a block with
its exponentials. Heads are divided between the cores of a chip.

The library's splash attention goes through tiles of keys instead, updating a running maximum and sum, and its backward
kernels run on one core of a chip unless there are several rows. docs/performance.md compares the two.

Axes: B batch, H heads, T queries, S keys (S = T), K head_dim. Scores have keys first, so that what belongs to a query
is a row. Queries, keys, values and outputs are [B, H, K, T], or [B, H, T, K] if the channels fill the 128 lanes;
neither is padded. In the kernels, `channels` is the axis of K in one head's array, 0 or 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from codegen_jax.chips import LANES
from codegen_jax.model.attention_cpu import Segments
from codegen_jax.model.precision import products_of

# in bfloat16: 4,096 tokens, and 2,048 x 256 keys; more do not fit in the 16 MiB of fast memory of a v4 core
TOKEN_BYTES, KEY_BYTES = 4096 * 2, 2048 * 256 * 2
# scores of a block in the forward and the backward pass; the latter holds them four times
FORWARD_SCORES, BACKWARD_SCORES = 2048 * 512, 2048 * 256
MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)
PARAMETERS = pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary"))  # cores share heads


def fits(length: int, head_dim: int, dtype: str) -> bool:
    """Whether sequences of this length fit in a core's fast memory."""
    size = jnp.dtype(dtype).itemsize
    return length * size <= TOKEN_BYTES and length * head_dim * size <= KEY_BYTES


def attention_in_fast_memory(
    q_BTHK: jax.Array, k_BSHK: jax.Array, v_BSHK: jax.Array, segment_ids: Segments, interpret: bool
) -> jax.Array:
    """See `causal_attention`; T must be a multiple of 128. Names for remat: "qkv" and "attention"."""
    K = q_BTHK.shape[-1]
    channels = 1 if K % LANES == 0 else 0
    order = (0, 2, 1, 3) if channels == 1 else (0, 2, 3, 1)
    q, k, v = (checkpoint_name(x.transpose(order), "qkv") for x in (q_BTHK * K**-0.5, k_BSHK, v_BSHK))
    ids = None if segment_ids is None else (segment_ids[0][:, None, :], segment_ids[1][:, :, None])
    out: Any = _attention(q, k, v, ids, channels, interpret)
    return jnp.transpose(out, [order.index(axis) for axis in range(4)])


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attention(q: jax.Array, k: jax.Array, v: jax.Array, ids: Any, channels: int, interpret: bool) -> jax.Array:
    return _forward(q, k, v, ids, channels, interpret)[0]


def _forward(
    q: jax.Array, k: jax.Array, v: jax.Array, ids: Any, channels: int, interpret: bool
) -> tuple[jax.Array, Any]:
    grid = _Grid.of(q, channels, FORWARD_SCORES)
    out, logsumexp_BH1T = pl.pallas_call(
        partial(_forward_kernel, channels=channels),
        grid=(*q.shape[:2], grid.blocks),
        in_specs=[grid.queries(), grid.every_key(), grid.every_key(), *grid.ids(ids)],
        out_specs=[grid.queries(), grid.row()],
        out_shape=[
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct((*q.shape[:2], 1, grid.length), jnp.float32),
        ],
        compiler_params=PARAMETERS,
        name=f"attention_forward_{grid.block}",
        interpret=interpret,
    )(q, k, v, *(ids or ()))
    out, logsumexp_BH1T = (checkpoint_name(x, "attention") for x in (out, logsumexp_BH1T))
    return out, (q, k, v, ids, out, logsumexp_BH1T)


def _backward(
    channels: int, interpret: bool, residuals: Sequence[Any], dout: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    q, k, v, ids, out, logsumexp_BH1T = residuals
    # from the last block to the first: after each, the gradients of its own keys and values are complete
    grid = _Grid.of(q, channels, BACKWARD_SCORES, descending=True)
    # the mean of dweights by weights, which softmax's gradient subtracts
    mean_BH1T = (out.astype(jnp.float32) * dout.astype(jnp.float32)).sum(2 + channels)[:, :, None]
    of_keys = jax.ShapeDtypeStruct((*q.shape[:2], grid.length, grid.head_dim), q.dtype)
    kernel = pl.pallas_call(
        partial(_backward_kernel, channels=channels),
        grid=(*q.shape[:2], grid.blocks),
        in_specs=[
            *[grid.queries(), grid.every_key(), grid.every_key()],
            *[grid.queries(), grid.row(), grid.row(), *grid.ids(ids)],
        ],
        out_specs=[grid.queries(), grid.keys(), grid.keys()],
        out_shape=[jax.ShapeDtypeStruct(q.shape, q.dtype), of_keys, of_keys],
        scratch_shapes=[pltpu.VMEM((grid.length, grid.head_dim), jnp.float32)] * 2,
        compiler_params=PARAMETERS,
        name=f"attention_backward_{grid.block}",
        interpret=interpret,
    )
    with products_of(q.dtype):  # jax.checkpoint traces this outside the forward pass's context
        dq, dk_BHSK, dv_BHSK = kernel(q, k, v, dout, logsumexp_BH1T, mean_BH1T, *(ids or ()))
    dk, dv = (x if channels == 1 else x.swapaxes(2, 3) for x in (dk_BHSK, dv_BHSK))
    return dq, dk, dv, None


_attention.defvjp(_forward, _backward)


@dataclass(frozen=True)
class _Grid:
    """The steps of a kernel: for each head, its blocks of queries; and which part of each array a step takes.

    Attributes:
        length: T.
        head_dim: K.
        channels: see above.
        block: queries in a block.
        descending: whether the steps go from the last block to the first.
    """

    length: int
    head_dim: int
    channels: int
    block: int
    descending: bool

    @classmethod
    def of(cls, q: jax.Array, channels: int, scores: int, descending: bool = False) -> "_Grid":
        """The grid with the largest blocks that divide the queries and have no more than this many scores."""
        head_dim, length = q.shape[2 + channels], q.shape[3 - channels]
        sizes = [size for size in (LANES, 2 * LANES, 4 * LANES) if length % size == 0 and size * length <= scores]
        return cls(length, head_dim, channels, max(sizes, default=LANES), descending)

    @property
    def blocks(self) -> int:
        return self.length // self.block

    def at(self, step: Any) -> Any:
        return self.blocks - 1 - step if self.descending else step

    def queries(self) -> pl.BlockSpec:
        if self.channels == 1:
            return self.keys()
        return pl.BlockSpec((None, None, self.head_dim, self.block), lambda b, h, i: (b, h, 0, self.at(i)))

    def keys(self) -> pl.BlockSpec:
        return pl.BlockSpec((None, None, self.block, self.head_dim), lambda b, h, i: (b, h, self.at(i), 0))

    def every_key(self) -> pl.BlockSpec:
        shape = (self.length, self.head_dim) if self.channels == 1 else (self.head_dim, self.length)
        return pl.BlockSpec((None, None, *shape), lambda b, h, i: (b, h, 0, 0))

    def row(self) -> pl.BlockSpec:
        return pl.BlockSpec((None, None, 1, self.block), lambda b, h, i: (b, h, 0, self.at(i)))

    def ids(self, ids: Any) -> list[pl.BlockSpec]:
        """Segment ids of a block of queries [1, T], and of all keys [S, 1]."""
        if ids is None:
            return []
        return [
            pl.BlockSpec((None, 1, self.block), lambda b, h, i: (b, 0, self.at(i))),
            pl.BlockSpec((None, self.length, 1), lambda b, h, i: (b, 0, 0)),
        ]


def _forward_kernel(q: Any, k: Any, v: Any, *refs: Any, channels: int) -> None:
    *ids, out, logsumexp_1T = refs
    for i, keys in _blocks(q, k, channels):

        @pl.when(pl.program_id(2) == i)
        def _(keys: int = keys) -> None:
            scores_ST = _scores(q, k, ids, keys, channels)
            largest_1T = scores_ST.max(0, keepdims=True)
            weights_ST = jnp.exp(scores_ST - largest_1T)
            sum_1T = weights_ST.sum(0, keepdims=True)
            weighted_KT = _dot(_first(v, keys, channels), weights_ST.astype(v.dtype), 1 - channels, 0)
            _store(out, weighted_KT / sum_1T, channels)
            logsumexp_1T[...] = largest_1T + jnp.log(sum_1T)


def _backward_kernel(
    q: Any, k: Any, v: Any, dout: Any, logsumexp_1T: Any, mean_1T: Any, *refs: Any, channels: int
) -> None:
    *ids, dq, dk_SK, dv_SK, dk_sum_SK, dv_sum_SK = refs
    blocks = _blocks(q, k, channels)

    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        dk_sum_SK[...] = jnp.zeros_like(dk_sum_SK)
        dv_sum_SK[...] = jnp.zeros_like(dv_sum_SK)

    for i, keys in blocks:

        @pl.when(pl.program_id(2) == len(blocks) - 1 - i)
        def _(keys: int = keys) -> None:
            weights_ST = jnp.exp(_scores(q, k, ids, keys, channels) - logsumexp_1T[...])
            dweights_ST = _dot(_first(v, keys, channels), dout[...], channels, channels)
            dscores_ST = (weights_ST * (dweights_ST - mean_1T[...])).astype(q.dtype)
            dv_sum_SK[:keys] += _dot(weights_ST.astype(q.dtype), dout[...], 1, 1 - channels)
            dk_sum_SK[:keys] += _dot(dscores_ST, q[...], 1, 1 - channels)
            _store(dq, _dot(_first(k, keys, channels), dscores_ST, 1 - channels, 0), channels)
            own = slice(keys - len(dk_SK), keys)
            dk_SK[...] = dk_sum_SK[own].astype(q.dtype)
            dv_SK[...] = dv_sum_SK[own].astype(q.dtype)


def _blocks(q: Any, k: Any, channels: int) -> list[tuple[int, int]]:
    """The index of each block of queries, and the number of keys up to its end."""
    block, length = q.shape[1 - channels], k.shape[1 - channels]
    return [(i, (i + 1) * block) for i in range(length // block)]


def _scores(q: Any, k: Any, ids: Sequence[Any], keys: int, channels: int) -> jax.Array:
    """Scores of a block of queries and the keys up to its end, masked beyond each query and outside its segment."""
    scores_ST = _dot(_first(k, keys, channels), q[...], channels, channels)
    if ids:
        q_ids_1T, k_ids_S1 = ids
        scores_ST = jnp.where(k_ids_S1[:keys] == q_ids_1T[...], scores_ST, MASKED)
    block = scores_ST.shape[1]
    key, query = (jax.lax.broadcasted_iota(jnp.int32, (block, block), axis) for axis in (0, 1))
    square_ST = jnp.where(key <= query, scores_ST[keys - block :], MASKED)
    return jnp.concatenate([scores_ST[: keys - block], square_ST]) if keys > block else square_ST


def _first(x: Any, keys: int, channels: int) -> jax.Array:
    return x[:keys] if channels == 1 else x[:, :keys]


def _store(ref: Any, x_KT: jax.Array, channels: int) -> None:
    ref[...] = (x_KT.T if channels == 1 else x_KT).astype(ref.dtype)


def _dot(a: jax.Array, b: jax.Array, a_axis: int, b_axis: int) -> jax.Array:
    """The product of two matrices that sums over these axes, in float32."""
    return jax.lax.dot_general(a, b, (((a_axis,), (b_axis,)), ((), ())), preferred_element_type=jnp.float32)
