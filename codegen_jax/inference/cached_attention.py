"""Attention of new tokens to the KV cache, and to the recent tokens, to which it adds them.

On TPUs it is a Pallas kernel, if the channels fill the 128 lanes and a head fits in fast memory: a step of its grid
takes one head of one row with all slots, so the scores stay in fast memory, and the next head's keys and values arrive
meanwhile. Elsewhere XLA compiles it. Neither depends on other rows.

Axes: B rows, T new tokens, S cached slots, R recent slots, H heads, K head_dim.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from codegen_jax.chips import LANES
from codegen_jax.inference.matrix import min_rows
from codegen_jax.model.precision import products_of
from codegen_jax.sharding import device_kind, shard_map

# of a head's keys and values; a second head arrives meanwhile, and a v4 core has 16 MiB of fast memory
HEAD_BYTES = 4 << 20
MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)
BY_ROW, BY_HEAD = ("batch",), ("batch", "heads", None, None)  # logical axes
Pair = tuple[jax.Array, ...]  # keys and values


def cached_attention(
    q_BTHK: jax.Array, new: Pair, cached: Pair, recent: Pair, base_B: jax.Array, first_B: jax.Array
) -> tuple[jax.Array, Pair]:
    """Attention of each query to the cached slots before base_B and the recent slots up to its own position.

    Scores and softmax are float32. Queries are padded to as many as a product has at least (`min_rows`), up to the end:
    a TPU would spend two operations per product on removing the padding in between.

    Args:
        q_BTHK: the queries, at positions first_B[b] .. first_B[b] + T - 1 of row b.
        new: their keys [B, H, K, T] and values [B, H, T, K].
        cached: keys [B, H, K, S] and values [B, H, S, K] at positions 0 .. base_B[b] - 1.
        recent: keys [B, H, K, R] and values [B, H, R, K] at positions base_B[b] and later.
        base_B: int32.
        first_B: int32.

    Returns:
        The attention [B, T, H, K] in the dtype of the queries, and `recent` with the new keys and values.
    """
    T, K, S = q_BTHK.shape[1], q_BTHK.shape[3], cached[0].shape[3]
    rows = min_rows(q_BTHK.dtype)
    q_BHTK = jnp.pad(q_BTHK.transpose(0, 2, 1, 3), ((0, 0), (0, 0), (0, max(0, rows - T)), (0, 0)))
    fits = K % LANES == 0 and rows >= T and 2 * S * K * q_BTHK.dtype.itemsize <= HEAD_BYTES
    is_tpu, axes = device_kind().startswith("TPU"), (BY_HEAD, (BY_HEAD, BY_HEAD))
    attend = shard_map(kernel, (BY_HEAD, *[axes[1]] * 3, BY_ROW, BY_ROW), axes) if is_tpu and fits else products
    with products_of(q_BTHK.dtype):
        a_BHTK, recent = attend(q_BHTK, new, cached, recent, base_B, first_B)
    return a_BHTK[:, :, :T].transpose(0, 2, 1, 3).astype(q_BTHK.dtype), recent


def products(
    q_BHTK: jax.Array, new: Pair, cached: Pair, recent: Pair, base_B: jax.Array, first_B: jax.Array
) -> tuple[jax.Array, Pair]:
    """`cached_attention` as XLA compiles it."""
    (keys_BHKS, values_BHSK), (keys_BHKR, values_BHRK) = cached, map(_put, recent, new, [first_B - base_B] * 2, (3, 2))
    S, R, T = keys_BHKS.shape[3], keys_BHKR.shape[3], q_BHTK.shape[2]
    positions_BT = first_B[:, None] + jnp.arange(T)
    cached_BTS = jnp.broadcast_to(jnp.arange(S) < base_B[:, None, None], (*positions_BT.shape, S))
    recent_BTR = base_B[:, None, None] + jnp.arange(R) <= positions_BT[..., None]
    visible = jnp.concatenate([cached_BTS, recent_BTR], axis=-1)[:, None]
    scores = [_multiply(q_BHTK, keys) for keys in (keys_BHKS, keys_BHKR)]
    scores = jnp.where(visible, jnp.concatenate(scores, axis=-1) * q_BHTK.shape[-1] ** -0.5, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(values_BHSK.dtype)
    a_BHTK = _multiply(weights[..., :S], values_BHSK) + _multiply(weights[..., S:], values_BHRK)
    return a_BHTK, (keys_BHKR, values_BHRK)


def _multiply(a_BHTC: jax.Array, b_BHCN: jax.Array) -> jax.Array:
    """Product in float32 [B, H, T, N]."""
    return jnp.einsum("BHTC,BHCN->BHTN", a_BHTC, b_BHCN, preferred_element_type=jnp.float32)


def _put(old: jax.Array, new: jax.Array, first_B: jax.Array, axis: int) -> jax.Array:
    """Write `new` into `old` along `axis`, starting at first_B[b] in row b.

    An update at a different slot in each row is a scatter, which takes 25 ms per token on a CPU for 16 bfloat16 rows.
    Up to 16 tokens are therefore written with selects.
    """
    if len(first_B) == 1:
        return jax.lax.dynamic_update_slice_in_dim(old, new, first_B[0], axis)
    if new.shape[axis] > 16:
        update = lambda old, new, first: jax.lax.dynamic_update_slice_in_dim(old, new, first, axis - 1)
        return jax.vmap(update)(old, new, first_B)
    slots = jnp.expand_dims(jnp.arange(old.shape[axis]), [n for n in range(4) if n != axis])
    for number, token in enumerate(jnp.split(new, new.shape[axis], axis)):
        old = jnp.where(slots == first_B[:, None, None, None] + number, token, old)
    return old


def kernel(
    q_BHTK: jax.Array,
    new: Pair,
    cached: Pair,
    recent: Pair,
    base_B: jax.Array,
    first_B: jax.Array,
    interpret: bool = False,
) -> tuple[jax.Array, Pair]:
    """`cached_attention` in a Pallas kernel, which overwrites `recent`."""
    new_keys_BHKT, new_values_BHTK = new
    inputs = (q_BHTK, new_keys_BHKT.swapaxes(2, 3), new_values_BHTK, *cached, *recent)
    outputs = (q_BHTK, *recent)
    of_head = lambda x: pl.BlockSpec((None, None, *x.shape[2:]), lambda b, h, *_: (b, h, 0, 0))
    a_BHTK, keys_BHKR, values_BHRK = pl.pallas_call(
        _one_head,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=q_BHTK.shape[:2],
            in_specs=[*map(of_head, inputs)],
            out_specs=[*map(of_head, outputs)],
        ),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in outputs],
        input_output_aliases={7: 1, 8: 2},  # recent keys and values, counting base_B and first_B
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),  # cores share heads
        name="cached_attention",
        interpret=interpret,
    )(base_B, first_B, *inputs)
    return a_BHTK, (keys_BHKR, values_BHRK)


def _one_head(base_B: Any, first_B: Any, q_TK: Any, *refs: Any) -> None:
    new_keys_TK, new_values_TK, keys_KS, values_SK, old_keys_KR, old_values_RK, a_TK, keys_KR, values_RK = refs
    base, first = (x_B[pl.program_id(0)] for x_B in (base_B, first_B))
    first_slot, T = first - base, new_keys_TK.shape[0]
    # products with ones and zeros place the new tokens, and transpose the keys
    places_TR = jax.lax.broadcasted_iota(jnp.int32, (T, keys_KR.shape[1]), 1)
    ones_TR = (places_TR == first_slot + _iota(places_TR, 0)).astype(keys_KR.dtype)
    for old, new, axis in ((old_keys_KR, keys_KR, 1), (old_values_RK, values_RK, 0)):
        pair = (new_keys_TK[...], ones_TR) if axis else (ones_TR, new_values_TK[...])
        placed = jax.lax.dot_general(*pair, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
        slot = _iota(placed, axis)
        is_new = (first_slot <= slot) & (slot < first_slot + T)
        new[...] = jnp.where(is_new, placed, old[...].astype(jnp.float32)).astype(new.dtype)
    scores_TS, scores_TR = (_dot(q_TK[...], keys[...]) * q_TK.shape[1] ** -0.5 for keys in (keys_KS, keys_KR))
    position_TR = first + _iota(scores_TR, 0)
    scores_TS = jnp.where(_iota(scores_TS, 1) < base, scores_TS, MASKED)
    scores_TR = jnp.where(base + _iota(scores_TR, 1) <= position_TR, scores_TR, MASKED)
    largest_T1 = jnp.maximum(scores_TS.max(1, keepdims=True), scores_TR.max(1, keepdims=True))
    weights_TS, weights_TR = (jnp.exp(x - largest_T1) for x in (scores_TS, scores_TR))
    sum_T1 = weights_TS.sum(1, keepdims=True) + weights_TR.sum(1, keepdims=True)
    weights_TS, weights_TR = ((x / sum_T1).astype(values_SK.dtype) for x in (weights_TS, weights_TR))
    a_TK[...] = (_dot(weights_TS, values_SK[...]) + _dot(weights_TR, values_RK[...])).astype(a_TK.dtype)


def _iota(x: jax.Array, axis: int) -> jax.Array:
    return jax.lax.broadcasted_iota(jnp.int32, x.shape, axis)


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.dot(a, b, preferred_element_type=jnp.float32)
