"""LoRA (Hu et al. 2021, arXiv 2106.09685): low-rank updates computed beside the products with frozen weights.

    y = x W + scale * dropout(x) A B

They have the targets of PEFT. The fused qkv_proj has one A and, on an axis P, a B each for query, key and value, so an
adapter of PEFT and ours have the same rank. Each array is declared once, as in codegen.py; those of the blocks are
stacked over the adapted layers.

Axes: B batch, T time, D n_embd, H heads, K head_dim, F MLP width, V vocabulary, R rank, P query, key and value.
"""

from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer, zeros

from codegen_jax.config import LINEAR_LAYERS, AdapterConfig, CodeGenConfig
from codegen_jax.model.block import Product
from codegen_jax.model.codegen import Params, axes_of, plain_product, shapes_of, weight
from codegen_jax.model.cpu import einsum, einsum_with_update
from codegen_jax.model.precision import products_of
from codegen_jax.model.quantized import dense

Sizes = dict[str, int]  # sizes by logical axis, in order
QKV = ("query", "key", "value")  # of the fused qkv_proj
TARGETS = dict.fromkeys(QKV, "qkv_proj") | {"attention_out": "out_proj"}  # by our names, where PEFT's differ


class TrainedLowRank(nnx.Module):
    """A and B of one target; `stack` is the axis of the layers, if any.

    A has PEFT's initialization, uniform with standard deviation 1 / sqrt(3 inputs), and B is 0.
    """

    def __init__(self, rngs: nnx.Rngs, rank: int, inputs: Sizes, outputs: Sizes, stack: Sizes):
        self.a = declare(rngs, stack | inputs | {"rank": rank}, kaiming_uniform(inputs))
        self.b = declare(rngs, stack | {"rank": rank} | outputs, zeros)


def declare(rngs: nnx.Rngs, sizes: Sizes, init: Initializer) -> nnx.Param:
    return weight(rngs, tuple(sizes.values()), tuple(sizes), init)


def kaiming_uniform(inputs: Sizes) -> Initializer:
    """`torch.nn.init.kaiming_uniform_` with a = sqrt(5): uniform between -1 and 1, divided by sqrt(inputs)."""
    bound = 1.0
    for size in inputs.values():
        bound /= size**0.5
    return lambda key, shape, dtype=jnp.float32, out_sharding=None: jax.random.uniform(key, shape, dtype, -bound, bound)


class TrainedAdapter(nnx.Module):
    """All trained arrays of an adapter."""

    def __init__(self, model: CodeGenConfig, adapter: AdapterConfig, rngs: nnx.Rngs):
        # "norm" stands for the width: these arrays are small, so fsdp does not shard them
        width, heads = {"norm": model.n_embd}, {"heads": model.n_head, "head_dim": model.head_dim}
        mlp, vocabulary = {"mlp": model.n_inner}, {"vocab": model.vocab_size}
        stack = {"layers": len(adapter.layers) or model.n_layer}
        sides: dict[str, tuple[Sizes, Sizes, Sizes]] = {
            "qkv_proj": (width, {"projection": 3} | heads, stack),
            "out_proj": (heads, width, stack),
            "fc_in": (width, mlp, stack),
            "fc_out": (mlp, width, stack),
            "lm_head": (width, vocabulary, {}),
        }
        made = {name: TrainedLowRank(rngs, adapter.rank, *sides[name]) for name in adapter.modules}
        if "lm_head" in made:
            self.lm_head = made.pop("lm_head")
        self.blocks = nnx.Dict(made)
        if adapter.trainable_tokens:
            self.tokens = declare(rngs, {"tokens": len(adapter.trainable_tokens)} | width, zeros)


@cache
def _abstract(model: CodeGenConfig, adapter: AdapterConfig) -> Any:
    return nnx.split(nnx.eval_shape(lambda: TrainedAdapter(model, adapter, nnx.Rngs(0))))[1]


def init_adapter(model: CodeGenConfig, adapter: AdapterConfig, seed: int, embedding_VD: jax.Array) -> Params:
    """Random float32 parameters of an adapter; the same on every mesh. Trainable tokens start at their rows."""
    params = nnx.to_pure_dict(nnx.split(TrainedAdapter(model, adapter, nnx.Rngs(seed)))[1])
    if adapter.trainable_tokens:
        params["tokens"] = embedding_VD[jnp.array(adapter.trainable_tokens)].astype(jnp.float32)
    return params


def abstract_adapter(model: CodeGenConfig, adapter: AdapterConfig) -> Params:
    """Like `abstract_params`, for an adapter."""
    return shapes_of(_abstract(model, adapter))


def adapter_axes(model: CodeGenConfig, adapter: AdapterConfig) -> Params:
    """Like `param_axes`, for an adapter."""
    return axes_of(_abstract(model, adapter))


class Adapted(NamedTuple):
    """An adapter in one forward pass of the network.

    Attributes:
        config: the adapter's config.
        params: its parameters.
        keys_B: a random key for each row, which selects the inputs to drop; None: drop none.
    """

    config: AdapterConfig
    params: Params
    keys_B: jax.Array | None = None

    def embed(self, tokens_BT: jax.Array, x_BTD: jax.Array) -> jax.Array:
        """The embeddings of tokens, with the trained rows."""
        if "tokens" not in self.params:
            return x_BTD
        is_trained_BTN = tokens_BT[..., None] == jnp.array(self.config.trainable_tokens)
        rows_BTD = jnp.einsum(
            "BTN,ND->BTD", is_trained_BTN.astype(x_BTD.dtype), self.params["tokens"].astype(x_BTD.dtype)
        )
        return jnp.where(is_trained_BTN.any(-1, keepdims=True), rows_BTD, x_BTD)

    def stacked(self, n_layer: int) -> Any:
        """What `product` needs, stacked over all layers; layers without updates have zeros."""
        layers = self.config.layers
        full = lambda x: jnp.zeros((n_layer, *x.shape[1:]), x.dtype).at[jnp.array(layers)].set(x) if layers else x
        return jax.tree.map(full, self.params.get("blocks", {})), jnp.arange(n_layer)

    def product(self, stacked: Any) -> Product:
        """One layer's products with its updates, from one layer of `stacked`."""
        low_rank, layer = stacked
        down: dict[str, jax.Array] = {}  # query, key and value share scale * dropout(x) A

        def product(name: str, equation: str, x: jax.Array, w: jax.Array) -> tuple[jax.Array, ...]:
            target = TARGETS.get(name, name)
            if target not in low_rank:
                return plain_product(name, equation, x, w)
            a, b = low_rank[target]["a"], low_rank[target]["b"]
            with jax.named_scope("adapter"):
                if target not in down:
                    down[target] = self.down(target, x, a, layer)
                b = b[:, QKV.index(name)] if target == "qkv_proj" else b
            return einsum_with_update(equation, x, w, down[target], b.astype(x.dtype))

        return product

    def head(self, x_BTD: jax.Array, head_DV: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Hidden states and head whose product includes the update of lm_head: [x, scale x A] [W; B].

        The loss then computes the gradient of all of [W; B], of which only that of B is used.
        """
        if "lm_head" not in self.params:
            return x_BTD, head_DV
        low_rank = self.params["lm_head"]
        r_BTR = self.down("lm_head", x_BTD, low_rank["a"])
        wider_DV = jnp.concatenate([head_DV, low_rank["b"].astype(head_DV.dtype)])
        return jnp.concatenate([x_BTD, r_BTR], -1), wider_DV

    def down(self, name: str, x: jax.Array, a: jax.Array, layer: jax.Array | int = 0) -> jax.Array:
        """scale * dropout(x) A, [B, T, R]."""
        if self.keys_B is not None:
            target = (*LINEAR_LAYERS, "lm_head").index(name)
            keys_B = jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, layer), target))(self.keys_B)
            keep = 1 - self.config.dropout
            is_kept = jax.vmap(lambda key: jax.random.bernoulli(key, keep, x.shape[1:]))(keys_B)
            x = jnp.where(is_kept, x / keep, 0).astype(x.dtype)
        inputs = "HK" if x.ndim == 4 else "D"
        return einsum(f"BT{inputs},{inputs}R->BTR", x, a.astype(x.dtype)) * self.config.scale


def merged(config: AdapterConfig, dtype: str, params: Params, frozen: Params) -> Params:
    """The model's parameters with the updates added in float32; matrices, which may be quantized, in `dtype`."""
    is_array = lambda x: not isinstance(x, dict)
    in_dtype = lambda x: x if isinstance(x, jax.Array) else dense(x, dtype)
    model = jax.tree.map(in_dtype, frozen, is_leaf=is_array)
    layers = jnp.array(config.layers) if config.layers else slice(None)

    def add(name: str, update: jax.Array) -> None:
        weight = model["blocks"][name]
        model["blocks"][name] = weight.at[layers].set(
            (weight[layers].astype(jnp.float32) + config.scale * update).astype(weight.dtype)
        )

    with products_of(jnp.float32):
        for target, low_rank in params.get("blocks", {}).items():
            inputs, outputs = ("HK" if target == "out_proj" else "D"), ("PHK" if target == "qkv_proj" else "F")
            update = jnp.einsum(f"L{inputs}R,LR{outputs}->L{inputs}{outputs}", low_rank["a"], low_rank["b"])
            if target == "qkv_proj":
                for p, name in enumerate(QKV):
                    add(name, update[:, :, p])
            else:
                add("attention_out" if target == "out_proj" else target, update)
        if "lm_head" in params:
            head, low_rank = frozen["head"], params["lm_head"]
            update = config.scale * low_rank["a"] @ low_rank["b"]
            model["head"] = (head.astype(jnp.float32) + update).astype(head.dtype)
    if "tokens" in params:
        rows = params["tokens"].astype(frozen["embedding"].dtype)
        model["embedding"] = frozen["embedding"].at[jnp.array(config.trainable_tokens)].set(rows)
    return model
