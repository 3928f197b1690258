"""The network as it decodes: the function of model/codegen.py over `DecodeWeights` and a cache of keys and values.

The slot of a token in the cache is its position, and a query sees the slots up to its own position. So rows of any
lengths stand side by side, padded behind: what padding wrote is written over before a query can see it.

A loop that decodes reads the cache and writes to a small second one, `recent`, which `merge` puts into the first when
the loop ends: a cache that the loop also wrote to would be copied at each token by XLA on CPUs.

Axes: B rows, T tokens, S slots, R recent slots, H heads, K head_dim, G groups of heads.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from codegen_jax.config import CodeGenConfig
from codegen_jax.inference.decode_weights import DecodeWeights, few_rows, linear
from codegen_jax.model.attention import causal_attention
from codegen_jax.model.rotary import rotary_angles, rotate
from codegen_jax.sharding import constrain

# keys [B, H, K, S] and values [B, H, S, K] of each layer: the orders in which XLA on CPU multiplies without a copy
Cache = tuple[tuple[jax.Array, jax.Array], ...]


class Past(NamedTuple):
    """What a row has seen: positions 0 .. length_B - 1 in `cache`, from length_B on in `recent`."""

    cache: Cache
    recent: Cache
    length_B: jax.Array


def empty_cache(config: CodeGenConfig, rows: int, slots: int) -> Cache:
    H, K, dtype = config.n_head, config.head_dim, config.dtype
    of_layer = lambda: (jnp.zeros((rows, H, K, slots), dtype), jnp.zeros((rows, H, slots, K), dtype))
    return tuple(of_layer() for _ in range(config.n_layer))


def put(cache: Cache, new: Cache, first_B: jax.Array) -> Cache:
    """A cache with another written into it, from a slot of each row on."""
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
    """The states that the head reads [B, T, D], and `recent` with these tokens in it.

    Args:
        tokens_BT: int32 ids at positions first_B[b] .. first_B[b] + T - 1 of row b.
        past: what has been seen; None: nothing, and a cache of T slots is returned.
        first_B: int32; 0 without a past.
    """
    (B, T), H, K = tokens_BT.shape, config.n_head, config.head_dim
    G = _groups()
    positions_BT = (jnp.zeros(B, jnp.int32) if first_B is None else first_B)[:, None] + jnp.arange(T)
    angles_BTR = rotary_angles(positions_BT, config.rotary_dim)
    x_BTD = constrain(weights.embedding_VD[tokens_BT], "batch", None, None)
    dtype = x_BTD.dtype
    after = []
    for number, layer in enumerate(weights.layers):
        h_BTD = layer_norm(x_BTD, layer.ln_scale_D, layer.ln_bias_D, config)
        inner_BTGN = linear(h_BTD, layer.inner_ND).reshape(B, T, G, -1)
        qkv_BTGN, u_BTGF = inner_BTGN[..., : 3 * H * K // G].astype(dtype), inner_BTGN[..., 3 * H * K // G :]
        q, k, v = (x.reshape(B, T, H, K) for x in jnp.split(qkv_BTGN, 3, axis=-1))
        q, k = rotate(q, angles_BTR), rotate(k, angles_BTR)
        new = (k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3))
        if past is None or first_B is None:
            a_BTHK = causal_attention(q, k, v, backend=config.attention)
        else:
            (new,) = put((past.recent[number],), (new,), first_B - past.length_B)
            a_BTHK = cached_attention(q, past.cache[number], new, past.length_B, positions_BT)
        after.append(tuple(constrain(x, "batch", "heads", None, None) for x in new))
        u_BTGF = jax.nn.gelu(u_BTGF + layer.fc_in_bias_F.reshape(G, -1)).astype(dtype)
        both_BTM = jnp.concatenate([a_BTHK.reshape(B, T, G, -1), u_BTGF], axis=-1).reshape(B, T, -1)
        x_BTD += (linear(both_BTM, layer.outer_DM) + layer.fc_out_bias_D).astype(dtype)
        x_BTD = constrain(x_BTD, "batch", None, None)
    return layer_norm(x_BTD, weights.ln_scale_D, weights.ln_bias_D, config), tuple(after)


def logits(weights: DecodeWeights, x: jax.Array) -> jax.Array:
    """float32 scores [..., V] of the next token."""
    return linear(x, weights.head_VD) + weights.head_bias_V


def layer_norm(x_BTD: jax.Array, scale_D: jax.Array, bias_D: jax.Array, config: CodeGenConfig) -> jax.Array:
    x = x_BTD.astype(jnp.float32)
    x -= x.mean(-1, keepdims=True)
    x *= jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + config.layer_norm_epsilon)
    return (x * scale_D + bias_D).astype(x_BTD.dtype)


def cached_attention(
    q_BTHK: jax.Array, cached: Any, recent: Any, length_B: jax.Array, positions_BT: jax.Array
) -> jax.Array:
    """Attention of each query to the cached slots before length_B and the recent ones up to its position.

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
    """float32 [B, H, T, N]. Few rows are padded as in `linear`; the barrier keeps XLA from taking that back."""
    T = a_BHTC.shape[2]
    padded = jnp.pad(a_BHTC, ((0, 0), (0, 0), (0, max(0, few_rows(a_BHTC.dtype) - T)), (0, 0)))
    product = jnp.einsum("BHTC,BHCN->BHTN", padded, b_BHCN, preferred_element_type=jnp.float32)
    return jax.lax.optimization_barrier(product)[:, :, :T]


def _put(old: jax.Array, new: jax.Array, first_B: jax.Array, axis: int) -> jax.Array:
    """An update by rows is a scatter: 25 ms a token on a CPU for 16 rows of bfloat16. So few tokens are selected."""
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
