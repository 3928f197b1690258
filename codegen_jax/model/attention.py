"""Causal attention over whole sequences: one function with four backends.

Axes: B batch, T queries, S keys (S = T), H heads, K head_dim.
"""

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu.splash_attention import (
    BlockSizes,
    CausalMask,
    MultiHeadMask,
    SegmentIds,
    make_splash_mha_single_device,
)
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_kernel import QKVLayout

from codegen_jax.chips import LANES
from codegen_jax.errors import require
from codegen_jax.model.attention_cpu import Segments, attention_in_blocks
from codegen_jax.model.attention_tpu import attention_in_fast_memory, fits
from codegen_jax.model.cpu import on_cpu
from codegen_jax.model.precision import products_of
from codegen_jax.sharding import device_kind, shard_map

Backend = Literal["xla", "pallas", "splash", "cudnn"]
SPLASH_BLOCK = 512  # rows and columns of a tile; at 2,048 tokens, the causal mask skips 6 of the 4 x 4 tiles


def causal_attention(
    q_BTHK: jax.Array,
    k_BSHK: jax.Array,
    v_BSHK: jax.Array,
    *,
    segment_ids: Segments = None,
    backend: str = "auto",
) -> jax.Array:
    """softmax(q.k / sqrt(head_dim)) v, where each query attends to keys at its own and earlier positions.

    Args:
        q_BTHK: queries, rotated.
        k_BSHK: keys, rotated.
        v_BSHK: values.
        segment_ids: int32 ids of the queries [B, T] and keys [B, S]; a query attends only within its own segment.
        backend: xla (on a CPU in blocks), pallas or splash (both Pallas; interpreted unless on a TPU) or cudnn; auto
            chooses by device and shape.

    Returns:
        [B, T, H, K] in the dtype of v. Scores and softmax are float32, as in the authors' code.
    """
    if backend == "auto":
        _, T, _, K = q_BTHK.shape
        backend = choose_backend(device_kind(), T, K, q_BTHK.dtype.name)
    with products_of(q_BTHK.dtype):
        if backend in ("pallas", "splash"):
            return _in_kernels(q_BTHK, k_BSHK, v_BSHK, segment_ids, backend)
        q, k, v = (checkpoint_name(x, "qkv") for x in (q_BTHK, k_BSHK, v_BSHK))
        if backend == "xla" and on_cpu():
            return attention_in_blocks(q, k, v, segment_ids)
        out_BTHK = _cudnn(q, k, v, segment_ids) if backend == "cudnn" else _xla(q, k, v, segment_ids)
        return checkpoint_name(out_BTHK, "attention")


def choose_backend(device_kind: str, length: int, head_dim: int, dtype: str) -> Backend:
    """The fastest backend for sequences of this length on devices of this kind ("TPU v4", "NVIDIA H200", "cpu")."""
    if device_kind.startswith("TPU") and length % LANES == 0:  # the kernels support no other lengths
        return "pallas" if fits(length, head_dim, dtype) else "splash"
    if device_kind.startswith("NVIDIA") and head_dim % 8 == 0 and dtype == "bfloat16":
        return "cudnn"
    return "xla"


def _xla(q_BTHK: jax.Array, k_BSHK: jax.Array, v_BSHK: jax.Array, segment_ids: Segments) -> jax.Array:
    T = q_BTHK.shape[1]
    scores_BHTS = jnp.einsum("BTHK,BSHK->BHTS", q_BTHK, k_BSHK, preferred_element_type=jnp.float32)
    scores_BHTS *= q_BTHK.shape[-1] ** -0.5
    visible = jnp.arange(T) <= jnp.arange(T)[:, None]
    if segment_ids is not None:
        q_ids_BT, k_ids_BS = segment_ids
        visible = visible & (q_ids_BT[:, None, :, None] == k_ids_BS[:, None, None, :])
    scores_BHTS = jnp.where(visible, scores_BHTS, jnp.finfo(jnp.float32).min)
    weights_BHTS = jax.nn.softmax(scores_BHTS, axis=-1).astype(v_BSHK.dtype)
    return jnp.einsum("BHTS,BSHK->BTHK", weights_BHTS, v_BSHK)


def _cudnn(q_BTHK: jax.Array, k_BSHK: jax.Array, v_BSHK: jax.Array, segment_ids: Segments) -> jax.Array:
    mask = None
    if segment_ids is not None:
        q_ids_BT, k_ids_BS = segment_ids
        mask = q_ids_BT[:, None, :, None] == k_ids_BS[:, None, None, :]
    return jax.nn.dot_product_attention(q_BTHK, k_BSHK, v_BSHK, mask=mask, is_causal=True, implementation="cudnn")


def _in_kernels(
    q_BTHK: jax.Array, k_BSHK: jax.Array, v_BSHK: jax.Array, segment_ids: Segments, backend: str
) -> jax.Array:
    """Run Pallas kernels on each device's rows and heads; their inputs and residuals are named for remat.

    Raises:
        UserError: if they do not support the sequence length.
    """
    _, T, _, K = q_BTHK.shape
    require(T % LANES == 0, f"model.attention: {backend} needs a sequence length that is a multiple of 128, got {T}")
    require(
        backend == "splash" or fits(T, K, q_BTHK.dtype.name),
        f"model.attention: sequences of {T:,} tokens are too long for pallas; use splash",
    )
    on_device = partial(
        attention_in_fast_memory if backend == "pallas" else _splash, interpret=not device_kind().startswith("TPU")
    )
    axes = ("batch", None, "heads", None)
    ids_axes = None if segment_ids is None else (("batch", None), ("batch", None))
    return shard_map(on_device, (axes, axes, axes, ids_axes), axes)(q_BTHK, k_BSHK, v_BSHK, segment_ids)


def _splash(
    q_BTHK: jax.Array, k_BSHK: jax.Array, v_BSHK: jax.Array, segment_ids: Segments, interpret: bool
) -> jax.Array:
    (_, T, H, K), S = q_BTHK.shape, k_BSHK.shape[1]
    rows, columns = (max(b for b in range(LANES, SPLASH_BLOCK + 1, LANES) if n % b == 0) for n in (T, S))
    # if head_dim does not fill the lanes, put channels on sublanes and time on lanes, which avoids padding
    layout = QKVLayout.HEAD_DIM_MINOR if K % LANES == 0 else QKVLayout.SEQ_MINOR
    kernel = make_splash_mha_single_device(
        MultiHeadMask([CausalMask((T, S))] * H),
        block_sizes=BlockSizes(
            block_q=rows,
            block_kv=columns,
            block_q_dkv=rows,
            block_kv_dkv=columns,
            block_q_dq=rows,
            block_kv_dq=columns,
            q_layout=layout,
            k_layout=layout,
            v_layout=layout,
        ),
        residual_checkpoint_name="attention",
        interpret=interpret,
    )
    q_BHTK, k_BHSK, v_BHSK = (checkpoint_name(x.swapaxes(1, 2), "qkv") for x in (q_BTHK * K**-0.5, k_BSHK, v_BSHK))
    ids = None if segment_ids is None else SegmentIds(*segment_ids)
    out_BHTK: Any = jax.vmap(kernel)(q_BHTK, k_BHSK, v_BHSK, ids)
    return out_BHTK.swapaxes(1, 2)
