"""`training.remat: auto`: choose the policy with the least recomputation that fits the device."""

from codegen_jax.chips import LANES, chip_of
from codegen_jax.config import AdapterConfig, CodeGenConfig
from codegen_jax.model.quantized import TILE
from codegen_jax.training.loss import CHUNK_TOKENS


def choose_remat(
    model: CodeGenConfig, adapter: AdapterConfig, tokens: int, fsdp: int, tensor: int, device_kind: str
) -> str:
    """Return the policy for `tokens` tokens per micro-batch and device; dots if the device's memory is unknown.

    The peak is at the loss or in a block's backward pass. The compiler for TPUs needed 0.69 to 1.01 times the estimate
    for all sizes on v4, v5e, v5p and v6e: 20.8 GiB instead of 21.5 for 16B on v4-512. A tenth of the memory stays free.
    """
    chip = chip_of(device_kind)
    if chip is None:
        return "dots"
    itemsize = {"bfloat16": 2, "float32": 4}[model.dtype]
    width, inner, vocabulary = model.n_embd, model.n_inner // tensor, model.vocab_size // tensor
    heads = model.n_head // tensor * -(-model.head_dim // LANES) * LANES  # width of q, k, v and output, padded to lanes
    saved = {  # elements per token and layer: the block's input; attention output, q, k and v; MLP inner states
        "dots": width + 4 * heads + inner,
        "qkv_attention": width + 4 * heads,
        "attention": width + heads,
        "full": width,
    }
    # parameters, two moments and gradients in float32; or frozen parameters, and a little for their adapter
    in_tables = 2 * model.vocab_size * width  # embedding and head, which are not quantized
    per_weight = {None: itemsize, "int8": 1 + itemsize / TILE, "nf4": 0.5 + itemsize / TILE}[adapter.quantize]
    held = itemsize * in_tables + per_weight * (model.n_params - in_tables)
    state = (held if adapter.rank else 4 * 4 * model.n_params) // (fsdp * tensor)
    # the loss: the unsharded head in the compute dtype and its gradient in float32; one chunk's float32 logits and
    # their gradient, which is at most as large
    loss = (itemsize + 4) * vocabulary * width + 2 * 4 * min(tokens, CHUNK_TOKENS) * vocabulary
    # a layer has four width x width and two width x 4 width matrices; at most three layers' worth is unsharded at once:
    # its weights, their gradients before the reduce-scatter, and the prefetched weights of the next layer
    weights = 3 * 12 * width * width // tensor * itemsize
    # one block's backward pass: MLP states before and after GELU and their gradient; the block's input, its LayerNorm,
    # q, k, v and attention output; the gradients of the block's output and of its LayerNorm
    block = (3 * inner + 8 * width) * tokens * itemsize
    available = 0.9 * chip.hbm_bytes - state - max(loss, weights + block)
    saved_bytes = {policy: model.n_layer * tokens * size * itemsize for policy, size in saved.items()}
    return next((policy for policy, size in saved_bytes.items() if size <= available), "full")
