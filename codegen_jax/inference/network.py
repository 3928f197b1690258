"""The network for decoding: the blocks of model/block.py applied to `DecodeWeights` and a KV cache.

A token's slot in the cache is its position, and a query sees the slots up to its own position. Rows of different
lengths can therefore share a batch, padded on the right: slots written by padding are overwritten before any query can
see them.

The decoding loop reads the cache and writes to a small second cache, `recent`, which `merge` writes into the first when
the loop ends. If the loop wrote to the large cache, XLA would copy it for every token on CPUs.

Axes: B rows, T tokens, S slots, R recent slots, H heads, K head_dim, G groups of heads.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from codegen_jax.config import CodeGenConfig
from codegen_jax.inference.decode_weights import DecodeWeights, Layer
from codegen_jax.inference.matrix import linear, min_rows
from codegen_jax.model.attention import causal_attention
from codegen_jax.model.block import layer_norm, parallel_block
from codegen_jax.model.precision import products_of
from codegen_jax.model.rotary import rotary_angles
from codegen_jax.sharding import constrain

# keys [B, H, K, S] and values [B, H, S, K] per layer: the layouts that XLA on CPU multiplies without a copy
Cache = tuple[tuple[jax.Array, jax.Array], ...]


class Past(NamedTuple):
    """The keys and values of earlier tokens: positions 0 .. length_B - 1 are in `cache`, later ones in `recent`."""

    cache: Cache
    recent: Cache
    length_B: jax.Array


def empty_cache(config: CodeGenConfig, rows: int, slots: int) -> Cache:
    H, K, dtype = config.n_head, config.head_dim, config.dtype
    layer_cache = lambda: (jnp.zeros((rows, H, K, slots), dtype), jnp.zeros((rows, H, slots, K), dtype))
    return tuple(layer_cache() for _ in range(config.n_layer))


def put(cache: Cache, new: Cache, first_B: jax.Array) -> Cache:
    """`cache` with `new` written into it, starting at slot first_B[b] of row b."""
    return tuple((_put(k, new_k, first_B, 3), _put(v, new_v, first_B, 2)) for (k, v), (new_k, new_v) in zip(cache, new))


def merge(past: Past) -> Cache:
    return put(past.cache, past.recent, past.length_B)


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
                (new,) = put((past.recent[number],), (new,), first_B - past.length_B)
                a_BTHK = cached_attention(q, past.cache[number], new, past.length_B, positions_BT)
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
    """float32 logits [..., V] of the next token."""
    return linear(x, weights.head_VD) + weights.others["head_bias"]


def cached_attention(
    q_BTHK: jax.Array, cached: Any, recent: Any, length_B: jax.Array, positions_BT: jax.Array
) -> jax.Array:
    """Attention of each query to the cached slots before length_B and the recent slots up to its own position.

    Scores and softmax are float32.
    """
    (keys_BHKS, values_BHSK), (keys_BHKR, values_BHRK) = cached, recent
    S, R = keys_BHKS.shape[3], keys_BHKR.shape[3]
    q_BHTK = q_BTHK.transpose(0, 2, 1, 3)
    scores = [_multiply(q_BHTK, keys) for keys in (keys_BHKS, keys_BHKR)]
    cached_BTS = jnp.broadcast_to(jnp.arange(S) < length_B[:, None, None], (*positions_BT.shape, S))
    recent_BTR = length_B[:, None, None] + jnp.arange(R) <= positions_BT[..., None]
    visible = jnp.concatenate([cached_BTS, recent_BTR], axis=-1)[:, None]
    scores = jnp.where(visible, jnp.concatenate(scores, axis=-1) * q_BTHK.shape[-1] ** -0.5, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(values_BHSK.dtype)
    a_BHTK = _multiply(weights[..., :S], values_BHSK) + _multiply(weights[..., S:], values_BHRK)
    return a_BHTK.transpose(0, 2, 1, 3).astype(q_BTHK.dtype)


def _multiply(a_BHTC: jax.Array, b_BHCN: jax.Array) -> jax.Array:
    """Product in float32 [B, H, T, N], padded as in `linear`; the barrier keeps XLA from undoing the padding."""
    T = a_BHTC.shape[2]
    padded = jnp.pad(a_BHTC, ((0, 0), (0, 0), (0, max(0, min_rows(a_BHTC.dtype) - T)), (0, 0)))
    with products_of(a_BHTC.dtype):
        product = jnp.einsum("BHTC,BHCN->BHTN", padded, b_BHCN, preferred_element_type=jnp.float32)
    return jax.lax.optimization_barrier(product)[:, :, :T]


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


def _groups() -> int:
    mesh: Any = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape["tensor"]
