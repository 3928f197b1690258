"""The CodeGen network: embedding, parallel attention and MLP blocks with a shared LayerNorm, untied head with bias.

Axes: L layers, B batch, T time, D n_embd, H heads, K head_dim, F MLP width, V vocabulary.

Each weight is declared once, with its shape, logical axes and initializer. Initialization, shardings, checkpoints,
conversion and ahead-of-time compilation all use this declaration. Block weights are stacked on a leading axis L, and
`lax.scan` runs the blocks, so compile time does not grow with depth. Outside this file, parameters are a nested dict of
arrays; `module` turns them back into the network.
"""

from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.nn.initializers import Initializer, normal, ones, truncated_normal, zeros

from codegen_jax.config import CodeGenConfig
from codegen_jax.model.attention import Segments, causal_attention
from codegen_jax.model.block import Product, Updates, layer_norm, parallel_block
from codegen_jax.model.cpu import einsum
from codegen_jax.model.precision import products_of
from codegen_jax.model.quantized import dense
from codegen_jax.model.rotary import rotary_angles
from codegen_jax.sharding import constrain, gather

Params = Any  # a nested dict of arrays, or of their shapes, axes or shardings

# values saved for the backward pass, by `checkpoint_name`; "norm" is the mean and inverse deviation of a LayerNorm
REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "attention": jax.checkpoint_policies.save_only_these_names("attention"),
    "qkv_attention": jax.checkpoint_policies.save_only_these_names("norm", "qkv", "attention"),
    "dots": jax.checkpoint_policies.save_only_these_names("norm", "qkv", "attention", "mlp"),
    "none": jax.checkpoint_policies.save_anything_except_these_names("weight"),
}


def weight(rngs: nnx.Rngs, shape: tuple[int, ...], axes: tuple[str, ...], init: Initializer) -> nnx.Param:
    """A float32 parameter annotated with its logical axes."""
    return nnx.Param(init(rngs.params(), shape, jnp.float32), axes=axes)


def gathered(param: nnx.Param, dtype: Any) -> jax.Array:
    """A weight in the compute dtype, dequantized and gathered along fsdp; the backward pass does both again."""
    return checkpoint_name(gather(dense(param[...], dtype), param.get_metadata("axes")), "weight")


def plain_product(name: str, equation: str, x: jax.Array, w: jax.Array) -> tuple[jax.Array, ...]:
    """A `Product` without updates."""
    return (einsum(equation, x, w),)


def matrix_init(config: CodeGenConfig, std: float) -> Initializer:
    """The authors' truncated normal (Haiku's: cut at two sigma, variance not corrected), or HF's normal(0.02)."""
    return normal(0.02) if config.init == "huggingface" else truncated_normal(std)


class LayerNorm(nnx.Module):
    """LayerNorm over the last axis with float32 statistics; `stack` is (n_layer,) inside the blocks, otherwise ()."""

    def __init__(self, config: CodeGenConfig, rngs: nnx.Rngs, stack: tuple[int, ...] = ()):
        shape, axes = (*stack, config.n_embd), ("layers",) * len(stack) + ("norm",)
        self.epsilon = config.layer_norm_epsilon
        self.scale = weight(rngs, shape, axes, ones)
        self.bias = weight(rngs, shape, axes, zeros)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        return layer_norm(x_BTD, self.scale[...], self.bias[...], self.epsilon)


class Block(nnx.Module):
    """The stacked weights of all blocks; call it on one layer's slice to run that layer's block."""

    def __init__(self, config: CodeGenConfig, rngs: nnx.Rngs):
        L, D, H, K, F = config.n_layer, config.n_embd, config.n_head, config.head_dim, config.n_inner
        fan_in = matrix_init(config, D**-0.5)
        residual = matrix_init(config, 2 / L * D**-0.5)  # the authors use sqrt(D), not sqrt(F), for fc_out as well
        self.attention_backend = config.attention
        self.ln = LayerNorm(config, rngs, stack=(L,))
        self.query, self.key, self.value = (
            weight(rngs, (L, D, H, K), ("layers", "embed", "heads", "head_dim"), fan_in) for _ in range(3)
        )
        self.attention_out = weight(rngs, (L, H, K, D), ("layers", "heads", "head_dim", "embed"), residual)
        self.fc_in = weight(rngs, (L, D, F), ("layers", "embed", "mlp"), fan_in)
        self.fc_in_bias = weight(rngs, (L, F), ("layers", "mlp"), zeros)
        self.fc_out = weight(rngs, (L, F, D), ("layers", "mlp", "embed"), residual)
        self.fc_out_bias = weight(rngs, (L, D), ("layers", "norm"), zeros)

    def __call__(
        self, x_BTD: jax.Array, angles_BTR: jax.Array, segment_ids: Segments, product: Product = plain_product
    ) -> jax.Array:
        """The block's output; `product` is how it multiplies activations and weights."""

        def attend(q_BTHK: jax.Array, k_BTHK: jax.Array, v_BTHK: jax.Array) -> tuple[jax.Array, None]:
            backend = self.attention_backend
            return causal_attention(q_BTHK, k_BTHK, v_BTHK, segment_ids=segment_ids, backend=backend), None

        return parallel_block(x_BTD, self.ln, BlockProducts(self, product), attend, angles_BTR)[0]


class BlockProducts(NamedTuple):
    """The `Products` of a block; the MLP's inner states are [B, T, F]."""

    block: Block
    product: Product

    def terms(self, equation: str, x: jax.Array, name: str) -> tuple[jax.Array, ...]:
        """The product with the weight of this name, and any updates of it to be added."""
        return self.product(name, equation, x, gathered(getattr(self.block, name), x.dtype))

    def total(self, equation: str, x: jax.Array, name: str) -> jax.Array:
        product, *updates = self.terms(equation, x, name)
        return sum(updates, start=product)

    def inner(self, h_BTD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        # materialize once: otherwise XLA on TPU fuses it into the products that read it and recomputes it per tile
        h_BTD = jax.lax.optimization_barrier(h_BTD)
        with jax.named_scope("attention"):
            q, k, v = (self.total("BTD,DHK->BTHK", h_BTD, name) for name in ("query", "key", "value"))
        with jax.named_scope("mlp"):
            u_BTF = self.total("BTD,DF->BTF", h_BTD, "fc_in")
            u_BTF = checkpoint_name(u_BTF + self.block.fc_in_bias[...].astype(h_BTD.dtype), "mlp")
        return q, k, v, u_BTF

    def outer(self, a_BTHK: jax.Array, m_BTF: jax.Array) -> jax.Array:
        with jax.named_scope("attention"):
            attention_BTD, *updates = self.terms("BTHK,HKD->BTD", a_BTHK, "attention_out")
        with jax.named_scope("mlp"):
            mlp_BTD, *mlp_updates = self.terms("BTF,FD->BTD", m_BTF, "fc_out")
        # add these first: both are partial sums along tensor, so one all-reduce serves both
        y_BTD = (attention_BTD + mlp_BTD) + self.block.fc_out_bias[...].astype(a_BTHK.dtype)
        return sum([*updates, *mlp_updates], start=y_BTD)


class CodeGen(nnx.Module):
    """The decoder. Weights of all layers are stacked; a call traces one block and scans it over the layers."""

    def __init__(self, config: CodeGenConfig, rngs: nnx.Rngs):
        D, V = config.n_embd, config.vocab_size
        self.config = config
        self.embedding = weight(rngs, (V, D), ("vocab", "embed"), matrix_init(config, V**-0.5))
        if config.embedding_bias:
            self.embedding_bias = weight(rngs, (D,), ("norm",), zeros)
        self.blocks = Block(config, rngs)
        self.ln_f = LayerNorm(config, rngs)
        self.head = weight(rngs, (D, V), ("embed", "vocab"), matrix_init(config, D**-0.5))
        self.head_bias = weight(rngs, (V,), ("vocab",), zeros)

    def hidden(
        self,
        tokens_BT: jax.Array,
        *,
        positions_BT: jax.Array | None = None,
        segment_ids_BT: jax.Array | None = None,
        remat: str | None = None,
        updates: Updates | None = None,
    ) -> jax.Array:
        """The hidden states after the final LayerNorm, which the head reads.

        Args:
            tokens_BT: int32 ids.
            positions_BT: int32; default 0..T-1.
            segment_ids_BT: int32; tokens attend within their own segment only. Padding has its own segment.
            remat: a name in `REMAT_POLICIES`: what each block saves for the backward pass. None: everything.
            updates: those of an adapter.

        Returns:
            [B, T, D] in the compute dtype.
        """
        segment_ids = None if segment_ids_BT is None else (segment_ids_BT, segment_ids_BT)
        x_BTD = self.embed(tokens_BT)
        if updates is not None:
            x_BTD = updates.embed(tokens_BT, x_BTD)
        return self.ln_f(self.run_blocks(x_BTD, positions_BT, segment_ids, remat, updates))

    def embed(self, tokens_BT: jax.Array) -> jax.Array:
        """The input of the first block, [B, T, D] in the compute dtype."""
        # gather the width before the lookup; a sharded lookup would have to reshard its result from width to batch
        embedding_VD = constrain(gathered(self.embedding, self.config.dtype), "vocab", None)
        x_BTD = embedding_VD[tokens_BT]
        if self.config.embedding_bias:
            x_BTD += self.embedding_bias[...].astype(x_BTD.dtype)
        return constrain(x_BTD, "batch", None, None)

    def run_blocks(
        self,
        x_BTD: jax.Array,
        positions_BT: jax.Array | None = None,
        segment_ids: Segments = None,
        remat: str | None = None,
        updates: Updates | None = None,
    ) -> jax.Array:
        """The output of the last block, [B, T, D]; see `hidden` for the arguments."""
        if positions_BT is None:
            positions_BT = jnp.arange(x_BTD.shape[1])[None]
        graphdef, stacked = nnx.split(self.blocks)
        angles_BTR = constrain(rotary_angles(positions_BT, self.config.rotary_dim), None, None, None)

        def layer(x_BTD: jax.Array, slices: Any) -> tuple[jax.Array, None]:
            block = nnx.merge(graphdef, slices[0])
            product = plain_product if updates is None else updates.product(slices[1])
            return block(x_BTD, angles_BTR, segment_ids, product), None

        if remat:
            layer = jax.checkpoint(layer, policy=REMAT_POLICIES[remat], prevent_cse=False)
        with products_of(x_BTD.dtype):
            return jax.lax.scan(layer, x_BTD, (stacked, updates and updates.stacked(self.config.n_layer)))[0]

    def logits(self, x_BTD: jax.Array) -> jax.Array:
        """Logits of the next token, float32 [B, T, V]."""
        kernel = self.head[...].astype(x_BTD.dtype)
        with products_of(x_BTD.dtype):
            logits_BTV = jnp.einsum("BTD,DV->BTV", x_BTD, kernel, preferred_element_type=jnp.float32)
        return logits_BTV + self.head_bias[...]

    def __call__(self, tokens_BT: jax.Array, **kwargs: Any) -> jax.Array:
        """Logits of a batch, float32 [B, T, V]; see `hidden` for the arguments."""
        return self.logits(self.hidden(tokens_BT, **kwargs))


@cache
def _abstract(config: CodeGenConfig) -> tuple[nnx.GraphDef[CodeGen], nnx.State]:
    return nnx.split(nnx.eval_shape(lambda: CodeGen(config, nnx.Rngs(0))))


def module(config: CodeGenConfig, params: Params) -> CodeGen:
    """The network with these parameters; cheap, even inside jit."""
    return nnx.merge(_abstract(config)[0], params)


def init_params(config: CodeGenConfig, seed: int) -> Params:
    """Random float32 parameters; the same on every mesh."""
    return nnx.to_pure_dict(nnx.split(CodeGen(config, nnx.Rngs(seed)))[1])


def abstract_params(config: CodeGenConfig) -> Params:
    """Shapes and dtypes of the parameters (`jax.ShapeDtypeStruct`), independent of the current mesh."""
    return shapes_of(_abstract(config)[1])


def param_axes(config: CodeGenConfig) -> Params:
    """Logical axes of the parameters, for `sharding.tree_shardings`."""
    return axes_of(_abstract(config)[1])


def shapes_of(state: nnx.State) -> Params:
    """Shapes and dtypes of a module's parameters, as a nested dict."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), nnx.to_pure_dict(state))


def axes_of(state: nnx.State) -> Params:
    """Logical axes of a module's parameters, as a nested dict."""
    is_param = lambda node: isinstance(node, nnx.Param)
    return nnx.to_pure_dict(jax.tree.map(lambda p: p.get_metadata("axes"), state, is_leaf=is_param))
