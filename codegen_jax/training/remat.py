"""`training.remat: auto`: the policy with the least recomputation that fits the device."""

from codegen_jax.chips import LANES, chip_of
from codegen_jax.config import CodeGenConfig
from codegen_jax.training.loss import CHUNK_TOKENS


def choose_remat(model: CodeGenConfig, tokens: int, fsdp: int, tensor: int, device_kind: str) -> str:
    """Return the policy for `tokens` micro-batch tokens on a device of this kind; dots if its memory is unknown.

    The estimate, in bytes, is conservative: 26 GiB for 16B on v4-512, where the compiler needs 21.
    """
    chip = chip_of(device_kind)
    if chip is None:
        return "dots"
    itemsize = {"bfloat16": 2, "float32": 4}[model.dtype]
    width, inner, vocabulary = model.n_embd, model.n_inner // tensor, model.vocab_size // tensor
    heads = model.n_head // tensor * -(-model.head_dim // LANES) * LANES  # as wide as a TPU stores q, k, v and output
    kept = {  # per token and layer: the block's input; the attention's output, with q, k and v; the MLP's inner states
        "dots": width + 4 * heads + inner,
        "qkv_attention": width + 4 * heads,
        "attention": width + heads,
        "full": width,
    }
    # float32: the parameter, its two moments and its gradient
    state = 4 * 4 * model.n_params // (fsdp * tensor)
    # a layer is four matrices of width x width and two of width x 4 width; at most three of that size are whole at
    # once: its weights, their gradients before these are scattered, and the weights of the layer gathered ahead
    weights = 3 * 12 * width * width // tensor * itemsize
    # whole: the embedding, its gradient and the head in the compute dtype, the head's gradient summed in float32
    tables = (3 * itemsize + 4) * vocabulary * width
    # a chunk's logits in float32, and their gradient, at most as large
    logits = 2 * 4 * min(tokens, CHUNK_TOKENS) * vocabulary
    # what the backward pass of one block holds: the MLP's states before and after GELU and their gradient; the block's
    # input, LayerNorm, q, k, v and attention's output, and the gradients of the block's output and LayerNorm
    block = (3 * inner + 8 * width) * tokens * itemsize
    left = chip.hbm_bytes - state - weights - tables - logits - block
    kept_bytes = {policy: model.n_layer * tokens * size * itemsize for policy, size in kept.items()}
    return next((policy for policy, size in kept_bytes.items() if size <= left), "full")
