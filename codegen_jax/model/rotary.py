"""Rotary position embedding on the first channels of each head, in half-split layout.

CodeGen's checkpoints rotate interleaved pairs (2i, 2i+1), as GPT-J does. Here the pairs are (i, i + rotary_dim/2):
contiguous halves, because strided lane slices are slow on TPU. Conversion permutes the channels once; applying the same
permutation to q and k leaves q.k unchanged.
"""

import jax
import jax.numpy as jnp
import numpy as np


def rotary_angles(positions_BT: jax.Array, rotary_dim: int) -> jax.Array:
    """Angles in radians, float32 [B, T, rotary_dim / 2]: position * 10000^(-2i / rotary_dim).

    float32 matters: bfloat16 rounds 257 to 256, and sin(257) is not sin(256).
    """
    frequencies = 10000.0 ** (-jnp.arange(0, rotary_dim, 2, dtype=jnp.float32) / rotary_dim)
    return positions_BT[..., None].astype(jnp.float32) * frequencies


def rotate(x_BTHK: jax.Array, angles_BTR: jax.Array) -> jax.Array:
    """Rotate the first 2R channels of each head; the others are unchanged. Keeps the dtype, computes in float32.

    Computes x * cos + partner * sin, with partners from a product with a permutation matrix: on a TPU, splitting and
    concatenating a head's halves took five passes over memory; this takes one.
    """
    K, R = x_BTHK.shape[-1], angles_BTR.shape[-1]
    padding = ((0, 0), (0, 0), (0, K - 2 * R))
    sin, cos = jnp.sin(angles_BTR), jnp.cos(angles_BTR)
    sin_BTK = jnp.pad(jnp.concatenate([-sin, sin], axis=-1), padding)
    cos_BTK = jnp.pad(jnp.concatenate([cos, cos], axis=-1), padding, constant_values=1.0)
    partner_KK = np.zeros((K, K))
    partner_KK[np.roll(np.arange(2 * R), R), np.arange(2 * R)] = 1
    partner_BTHK = jnp.einsum(
        "BTHJ,JK->BTHK",
        x_BTHK,
        partner_KK.astype(x_BTHK.dtype),
        precision="highest",
        preferred_element_type=jnp.float32,
    )
    return (x_BTHK * cos_BTK[:, :, None] + partner_BTHK * sin_BTK[:, :, None]).astype(x_BTHK.dtype)
