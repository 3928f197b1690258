"""Weights in transformers' CodeGen layout to our parameter tree.

Everything that is particular to that layout is here: the fused qkv_proj in groups of q, v, k, interleaved rotary
channels, and kernels stored as [out, in].
"""

from collections.abc import Callable, Mapping

import jax
import numpy as np

from codegen_jax.config import CodeGenConfig
from codegen_jax.model.codegen import Params


def split_qkv(qkv: np.ndarray, config: CodeGenConfig, mp_num: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Query, key and value kernels [D, H, K] of one layer's qkv_proj.weight [3 D, D].

    Its rows are mp_num groups (the authors' TPU cores), each with q, **v**, k of its share of the heads.
    """
    groups = qkv.reshape(mp_num, 3, config.n_head // mp_num, config.head_dim, config.n_embd)
    q, v, k = (groups[:, j].reshape(config.n_head, config.head_dim, config.n_embd) for j in range(3))
    rotary = config.rotary_dim
    # channel pairs (2i, 2i+1) to (i, i + rotary/2); q and k alike, so q.k stays
    order = np.r_[0:rotary:2, 1:rotary:2, rotary : config.head_dim]
    return q[:, order].transpose(2, 0, 1), k[:, order].transpose(2, 0, 1), v.transpose(2, 0, 1)


def params_from_huggingface(tensors: Mapping[str, np.ndarray], config: CodeGenConfig, mp_num: int = 4) -> Params:
    """Our parameters from the state dict of a CodeGenForCausalLM.

    Args:
        tensors: by name; buffers and other names are ignored.
        config: of the model.
        mp_num: groups in qkv_proj; 4 for every CodeGen 1 release. Shapes cannot tell it.
    """
    D, H, K = config.n_embd, config.n_head, config.head_dim

    def layer(i: int) -> Params:
        block = f"transformer.h.{i}."
        query, key, value = split_qkv(tensors[block + "attn.qkv_proj.weight"], config, mp_num)
        return {
            "ln": {"scale": tensors[block + "ln_1.weight"], "bias": tensors[block + "ln_1.bias"]},
            "query": query,
            "key": key,
            "value": value,
            "attention_out": tensors[block + "attn.out_proj.weight"].T.reshape(H, K, D),
            "fc_in": tensors[block + "mlp.fc_in.weight"].T,
            "fc_in_bias": tensors[block + "mlp.fc_in.bias"],
            "fc_out": tensors[block + "mlp.fc_out.weight"].T,
            "fc_out_bias": tensors[block + "mlp.fc_out.bias"],
        }

    stack: Callable[..., np.ndarray] = lambda *layers: np.stack(layers)
    return {
        "embedding": tensors["transformer.wte.weight"],
        "blocks": jax.tree.map(stack, *(layer(i) for i in range(config.n_layer))),
        "ln_f": {"scale": tensors["transformer.ln_f.weight"], "bias": tensors["transformer.ln_f.bias"]},
        "head": tensors["lm_head.weight"].T,
        "head_bias": tensors["lm_head.bias"],
    }
