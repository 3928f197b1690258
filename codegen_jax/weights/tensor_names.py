"""Names of saved tensors: remove the prefixes that training programs add to a model's own names."""

import logging
from collections.abc import Mapping
from itertools import dropwhile

from codegen_jax.errors import listed, require
from codegen_jax.weights.other_programs import other_tensor
from codegen_jax.weights.tensors import Tensor

log = logging.getLogger(__name__)

WRAPPERS = {  # name components that are removed at any depth; CodeGen itself uses none of them
    "module",  # DataParallel, DeepSpeed
    "_orig_mod",  # torch.compile
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",  # Lightning Fabric
}
OWNERS = {  # name components that are removed at the beginning only
    "model",  # Lightning's attribute
    "base_model",  # PEFT's base_model.model, which remains after a merge
}


def plain_tensors(source: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Map tensors to the model's own names: `module.transformer.wte.weight` becomes `transformer.wte.weight`.

    Args:
        source: name of the model for messages.
        tensors: the tensors, by their names in the files.

    Raises:
        UserError: if two tensors get the same name, or names or shapes show that this is not a complete, plain CodeGen.
    """
    other = other_tensor(tensors)
    require(other is None, f"{source}: {other}")
    empty = [name for name, tensor in tensors.items() if 0 in tensor.shape]
    require(
        not empty,
        f"{source}: tensors without elements, as DeepSpeed ZeRO-3 saves them if it does not gather: {listed(empty)}; "
        "zero_to_fp32.py beside its checkpoint makes whole ones",
    )
    saved_as: dict[str, list[str]] = {}
    for name in tensors:
        saved_as.setdefault(_plain(name), []).append(name)
    doubles = [" and ".join(names) for names in saved_as.values() if len(names) > 1]
    require(not doubles, f"{source}: two names of one tensor: {listed(doubles)}; keep one of each")
    require(
        "wte.weight" not in saved_as or "lm_head.weight" in saved_as,
        f"{source}: a CodeGenModel, which is the network without its head; save the CodeGenForCausalLM that it is of",
    )
    require(
        "transformer.wte.weight" not in saved_as or "lm_head.weight" in saved_as,
        f"{source}: no lm_head.weight, as if the head were the embedding, which CodeGen's is not; save the "
        "CodeGenForCausalLM with tie_word_embeddings false",
    )
    first, *others = {name.split(".")[0] for name in saved_as} or {"transformer"}
    require(
        bool(others) or first in ("transformer", "lm_head"),
        f"{source}: each name begins with {first}., which no name of CodeGen's does; save the model within alone",
    )
    off = {part for plain, (name,) in saved_as.items() for part in name.split(".") if part not in plain.split(".")}
    if off:
        parts = ", ".join(f"{part}." for part in sorted(off))
        log.info(f"{source}: the tensors' names are read without the prefix {parts}")
    return {plain: tensors[name] for plain, (name,) in saved_as.items()}


def _plain(name: str) -> str:
    parts = [part for part in name.split(".") if part not in WRAPPERS]
    return ".".join(dropwhile(OWNERS.__contains__, parts))
