"""`training.remat: auto`: the policy that computes least twice among those that fit the device."""

from codegen_jax.chips import chip_of
from codegen_jax.config import CodeGenConfig
from codegen_jax.training.loss import CHUNK_TOKENS

LANES = 128  # the output of TPU attention is padded to them


def choose_remat(model: CodeGenConfig, tokens: int, fsdp: int, tensor: int, device_kind: str) -> str:
    """The policy for so many tokens of a micro-batch on a device of this kind; dots where its memory is not known.

    The sum is one of estimates on the safe side, in bytes: 16B on v4-512 comes to 26 GiB where the compiler needs 21.
    """
    chip = chip_of(device_kind)
    if chip is None:
        return "dots"
    itemsize = {"bfloat16": 2, "float32": 4}[model.dtype]
    width, inner, vocabulary = model.n_embd, model.n_inner // tensor, model.vocab_size // tensor
    heads = model.n_head // tensor * -(-model.head_dim // LANES) * LANES
    kept = {
        "dots": width + 4 * heads + inner,
        "qkv_attention": width + 4 * heads,
        "attention": width + heads,
        "full": width,
    }
    state = 16 * model.n_params // (fsdp * tensor)  # parameters, two moments, gradients
    weights = 3 * 12 * width * width // tensor * itemsize  # of three layers, gathered ahead
    tables = 10 * vocabulary * width  # embedding and head gathered, their gradients whole
    logits = 8 * min(tokens, CHUNK_TOKENS) * vocabulary
    block = (3 * inner + 8 * width) * tokens * itemsize
    left = chip.hbm_bytes - state - weights - tables - logits - block
    kept_bytes = {policy: model.n_layer * tokens * size * itemsize for policy, size in kept.items()}
    return next((policy for policy, size in kept_bytes.items() if size <= left), "full")
