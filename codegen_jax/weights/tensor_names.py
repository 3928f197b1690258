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
    "model",  # the usual attribute of a LightningModule
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
        f"{source}: contains empty tensors, which DeepSpeed ZeRO-3 saves for ungathered weights: {listed(empty)}; "
        "convert the DeepSpeed checkpoint with its zero_to_fp32.py",
    )
    saved_as: dict[str, list[str]] = {}
    for name in tensors:
        saved_as.setdefault(_plain(name), []).append(name)
    duplicates = [" and ".join(names) for names in saved_as.values() if len(names) > 1]
    require(not duplicates, f"{source}: several names for the same tensor: {listed(duplicates)}; keep one of each")
    require(
        "wte.weight" not in saved_as or "lm_head.weight" in saved_as,
        f"{source}: a CodeGenModel, which has no head; save the CodeGenForCausalLM that contains it",
    )
    require(
        "transformer.wte.weight" not in saved_as or "lm_head.weight" in saved_as,
        f"{source}: no lm_head.weight; CodeGen's head is not tied to the embedding, so save the CodeGenForCausalLM "
        "with tie_word_embeddings false",
    )
    first, *others = {name.split(".")[0] for name in saved_as} or {"transformer"}
    require(
        bool(others) or first in ("transformer", "lm_head"),
        f"{source}: every name begins with {first}., which is not part of CodeGen's names; save only the inner model",
    )
    removed = {part for plain, (name,) in saved_as.items() for part in name.split(".") if part not in plain.split(".")}
    if removed:
        parts = ", ".join(f"{part}." for part in sorted(removed))
        log.info(f"{source}: removed the prefix {parts} from tensor names")
    return {plain: tensors[name] for plain, (name,) in saved_as.items()}


def _plain(name: str) -> str:
    parts = [part for part in name.split(".") if part not in WRAPPERS]
    return ".".join(dropwhile(OWNERS.__contains__, parts))
