"""Rotary position embedding on the first channels of each head, in half-split layout.

CodeGen's checkpoints rotate interleaved pairs (2i, 2i+1), as GPT-J does. Here the pair is (i, i + rotary_dim/2):
contiguous halves, since strided lane slices are slow on TPU. Permuting the rows of q and k alike leaves q.k unchanged;
conversion/ does it once.
"""

import jax
import jax.numpy as jnp


def rotary_angles(positions_BT: jax.Array, rotary_dim: int) -> jax.Array:
    """Angles in radians, float32 [B, T, rotary_dim / 2]: position * 10000^(-2i / rotary_dim).

    float32 matters: bfloat16 rounds 257 to 256, and sin(257) is not sin(256).
    """
    frequencies = 10000.0 ** (-jnp.arange(0, rotary_dim, 2, dtype=jnp.float32) / rotary_dim)
    return positions_BT[..., None].astype(jnp.float32) * frequencies


def rotate(x_BTHK: jax.Array, angles_BTR: jax.Array) -> jax.Array:
    """Rotate the first 2R channels of each head; the others pass. Keeps the dtype, computes in float32."""
    half = angles_BTR.shape[-1]
    sin, cos = jnp.sin(angles_BTR)[:, :, None], jnp.cos(angles_BTR)[:, :, None]
    a, b = x_BTHK[..., :half].astype(jnp.float32), x_BTHK[..., half : 2 * half].astype(jnp.float32)
    rotated = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BTHK.dtype)
    return jnp.concatenate([rotated, x_BTHK[..., 2 * half :]], axis=-1)
