"""The network for decoding: the blocks of model/block.py applied to `DecodeWeights` and a KV cache.

A token's slot in the cache is its position, and a query sees the slots up to its own position. Rows of different
lengths can therefore share a batch, padded on the right: slots written by padding are overwritten before any query can
see them.

Decoding writes to a small second cache, `recent`, and a row's recent tokens move to the large one whenever it has
`MERGE_AFTER` of them, since a write at a different slot in each row is slow. When they move depends on the row alone:
its attention adds up the same numbers in the same order, whatever other rows do and wherever a chunk of rounds ends.

Axes: B rows, T tokens, S slots, R recent slots, H heads, K head_dim, G groups of heads.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from codegen_jax.config import CodeGenConfig
from codegen_jax.inference.cached_attention import cached_attention
from codegen_jax.inference.decode_weights import DecodeWeights, Layer
from codegen_jax.inference.matrix import linear
from codegen_jax.model.attention import causal_attention
from codegen_jax.model.block import layer_norm, parallel_block
from codegen_jax.model.rotary import rotary_angles
from codegen_jax.sharding import constrain, shard_map

MERGE_AFTER = 32  # recent tokens of a row

# keys [B, H, K, S] and values [B, H, S, K] per layer: the layouts that XLA on CPU multiplies without a copy
Cache = tuple[tuple[jax.Array, jax.Array], ...]


class Past(NamedTuple):
    """The keys and values of earlier tokens: positions 0 .. base_B - 1 are in `cache`, later ones in `recent`."""

    cache: Cache
    recent: Cache
    base_B: jax.Array


def empty_cache(config: CodeGenConfig, rows: int, slots: int) -> Cache:
    H, K = config.n_head, config.head_dim
    zeros = lambda *shape: jnp.zeros(shape, config.dtype)
    return tuple((zeros(rows, H, K, slots), zeros(rows, H, slots, K)) for _ in range(config.n_layer))


def merge(past: Past, next_B: jax.Array, which_B: jax.Array) -> Past:
    """Move the recent tokens of the rows `which_B` to the cache, in place; their next token is at next_B.

    All recent slots are moved, so the cache needs that many from base_B; no query sees those at next_B and later.
    """

    def move(cache: Cache, recent: Cache, base_B: jax.Array, which_B: jax.Array) -> Cache:
        order_B = jnp.argsort(~which_B)

        def move_row(number: jax.Array, cache: Cache) -> Cache:
            row = order_B[number]
            new = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, row, 1), recent)
            return put_row(cache, new, row, base_B[row])

        return jax.lax.fori_loop(0, which_B.sum(), move_row, cache)

    axes, row_axes = cache_axes(past.cache), ("batch",)
    moved_cache = shard_map(move, (axes, axes, row_axes, row_axes), axes)(past.cache, past.recent, past.base_B, which_B)
    return past._replace(cache=moved_cache, base_B=jnp.where(which_B, next_B, past.base_B))


def cache_axes(cache: Cache) -> Any:
    """The logical axes of a cache's arrays."""
    return jax.tree.map(lambda _: ("batch", "heads", None, None), cache)


def put_row(cache: Cache, new: Cache, row: jax.Array, slot: jax.Array) -> Cache:
    """`cache` with the only row of `new` written into row `row`, starting at `slot`."""
    update, zero = jax.lax.dynamic_update_slice, jnp.int32(0)
    return tuple(
        (update(keys, new_keys, (row, zero, zero, slot)), update(values, new_values, (row, zero, slot, zero)))
        for (keys, values), (new_keys, new_values) in zip(cache, new)
    )


def hidden(
    weights: DecodeWeights,
    config: CodeGenConfig,
    tokens_BT: jax.Array,
    past: Past | None = None,
    first_B: jax.Array | None = None,
) -> tuple[jax.Array, Cache]:
    """The head's input states [B, T, D], and `recent` with these tokens added.

    Args:
        tokens_BT: int32 ids at positions first_B[b] .. first_B[b] + T - 1 of row b.
        past: the tokens seen so far. None means prefill: a cache of T slots is returned in place of `recent`.
        first_B: int32, the position of each row's first token; None means 0 and requires that `past` is None.
    """
    positions_BT = jnp.arange(tokens_BT.shape[1]) + (0 if first_B is None else first_B[:, None])
    positions_BT = jnp.broadcast_to(positions_BT, tokens_BT.shape)
    angles_BTR = rotary_angles(positions_BT, config.rotary_dim)
    others, epsilon = weights.others, config.layer_norm_epsilon
    x_BTD = constrain(others["embedding"][tokens_BT], "batch", None, None)
    caches = []
    for number, layer in enumerate(weights.layers):

        def attend(q: jax.Array, k: jax.Array, v: jax.Array, number: int = number) -> tuple[jax.Array, Any]:
            new = (k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3))
            if past is None or first_B is None:
                a_BTHK = causal_attention(q, k, v, backend=config.attention)
            else:
                of_layer = past.cache[number], past.recent[number]
                a_BTHK, new = cached_attention(q, new, *of_layer, past.base_B, first_B)
            return a_BTHK, tuple(constrain(x, "batch", "heads", None, None) for x in new)

        norm = partial(layer_norm, scale_D=layer.others["ln.scale"], bias_D=layer.others["ln.bias"], epsilon=epsilon)
        x_BTD, layer_cache = parallel_block(x_BTD, norm, FusedProducts(layer, config), attend, angles_BTR)
        caches.append(layer_cache)
    return layer_norm(x_BTD, others["ln_f.scale"], others["ln_f.bias"], epsilon), tuple(caches)


class FusedProducts(NamedTuple):
    """The `Products` of model/block.py with one matrix for each side, split into G groups of heads.

    Axes: G groups, N outputs per group, M inputs of all groups, F MLP states per group.
    """

    layer: Layer
    config: CodeGenConfig

    def inner(self, h_BTD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        (B, T, _), H, K, G = h_BTD.shape, self.config.n_head, self.config.head_dim, _groups()
        inner_BTGN = linear(h_BTD, self.layer.inner_ND).reshape(B, T, G, -1)
        qkv_BTGN, u_BTGF = inner_BTGN[..., : 3 * H * K // G].astype(h_BTD.dtype), inner_BTGN[..., 3 * H * K // G :]
        q, k, v = (x.reshape(B, T, H, K) for x in jnp.split(qkv_BTGN, 3, axis=-1))
        return q, k, v, u_BTGF + self.layer.others["fc_in_bias"].reshape(G, -1)

    def outer(self, a_BTHK: jax.Array, m_BTGF: jax.Array) -> jax.Array:
        (B, T, G, _) = m_BTGF.shape
        both_BTM = jnp.concatenate([a_BTHK.reshape(B, T, G, -1), m_BTGF], axis=-1).reshape(B, T, -1)
        return (linear(both_BTM, self.layer.outer_DM) + self.layer.others["fc_out_bias"]).astype(a_BTHK.dtype)


def logits(weights: DecodeWeights, x: jax.Array) -> jax.Array:
    """float32 logits [..., V] of the next token.

    The barrier makes them the same bits in all programs. Without it, a GPU computes them inside operations that depend
    on the program: on an H100, log-probabilities differed by 2.4e-7 with and without penalties for another row.
    """
    return jax.lax.optimization_barrier(linear(x, weights.head_VD) + weights.others["head_bias"])


def _groups() -> int:
    mesh: Any = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape["tensor"]
