"""`training.remat: auto`: the policy that computes least twice among those that fit the device."""

from codegen_jax.chips import chip_of
from codegen_jax.config import RunConfig
from codegen_jax.training.loss import CHUNK_TOKENS

LANES = 128  # the output of TPU attention is padded to them


def choose_remat(config: RunConfig, rows: int, fsdp: int, tensor: int, device_kind: str) -> str:
    """The policy for so many rows of a micro-batch on a device of this kind; dots where its memory is not known.

    The sum is one of estimates on the safe side, in bytes: 16B on v4-512 comes to 26 GiB where the compiler needs 21.
    """
    chip = chip_of(device_kind)
    if config.training.remat != "auto":
        return config.training.remat
    if chip is None:
        return "dots"
    model, tokens = config.model, rows * config.data.sequence_length
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
    fits = (name for name, size in kept.items() if model.n_layer * tokens * size * itemsize <= left)
    return next(fits, "full")
