"""Our adapters' arrays to and from PEFT's tensors: qkv_proj in groups of q, v, k, and everything as [out, in].

Axes: L adapted layers, D n_embd, H heads, K head_dim, R rank, P query, key and value.
"""

import math
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import SingleDeviceSharding

from codegen_jax.config import AdapterConfig, CodeGenConfig
from codegen_jax.data.tokenizer import Tokenizer
from codegen_jax.errors import UserError, require
from codegen_jax.hub import ID, hub_id
from codegen_jax.model.adapter import abstract_adapter
from codegen_jax.storage import open_path
from codegen_jax.weights.adapter import Adapter, Rows, Update
from codegen_jax.weights.checkpoint_format import PARAMS, Run, damaged, read_item
from codegen_jax.weights.fingerprint import fingerprints
from codegen_jax.weights.huggingface_layout import TOP, fuse_projections, read_projection, tensor_in_layer

QKV = ("blocks.query", "blocks.key", "blocks.value")  # the axis P of our arrays
TENSORS = {  # target -> one of our parameters in its tensor
    "qkv_proj": "blocks.query",
    "out_proj": "blocks.attention_out",
    "fc_in": "blocks.fc_in",
    "fc_out": "blocks.fc_out",
}


def to_peft(
    params: Any,
    model: CodeGenConfig,
    adapter: AdapterConfig,
    mp_num: int,
    *,
    source: str,
    base: str | None,
    tokenizer: Tokenizer | None,
) -> Adapter:
    """Trained arrays as an adapter.

    Args:
        params: the arrays, float32; see model/adapter.py.
        model: config of the model.
        adapter: config of the adapter, with `trainable_tokens` resolved.
        mp_num: groups in qkv_proj of the model for which the adapter is written.
        source: name for messages.
        base: the model's name or folder, for adapter_config.json.
        tokenizer: the tokenizer of the training data.
    """
    layers = adapter.layers or list(range(model.n_layer))
    updates: dict[str, Update] = {}
    for target in adapter.modules:
        if target == "lm_head":
            low_rank = params["lm_head"]
            updates[TOP["head"]] = Update(low_rank["a"].T, low_rank["b"].T, adapter.scale)
            continue
        for place, layer in enumerate(layers):
            a, b = (params["blocks"][target][key][place] for key in ("a", "b"))
            if target == "qkv_proj":
                rows = fuse_projections(model, mp_num, {name: b[:, p] for p, name in enumerate(QKV)})
            else:
                rows = b.T
            updates[tensor_in_layer(layer, TENSORS[target])] = Update(
                a.reshape(-1, adapter.rank).T, rows, adapter.scale
            )
    ids = adapter.trainable_tokens
    rows = {TOP["embedding"]: Rows(ids, params["tokens"])} if ids else {}
    config = peft_config(model, adapter, base)
    return Adapter(source, config, mp_num, updates, rows=rows, tokenizer=tokenizer)


def peft_config(model: CodeGenConfig, adapter: AdapterConfig, base: str | None) -> dict[str, Any]:
    """The contents of adapter_config.json."""
    targets, layers = list(adapter.modules), adapter.layers or None
    if layers and "lm_head" in targets:  # which layers_to_transform would leave out, as it is in no layer
        blocks = [tensor_in_layer(layer, TENSORS[t]) for layer in layers for t in targets if t != "lm_head"]
        targets, layers = [*(name.removesuffix(".weight") for name in blocks), "lm_head"], None
    is_local = base is None or open_path(base).exists() or not ID.fullmatch(base)
    name, revision = (base, None) if is_local else hub_id(str(base))
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": name,
        "revision": revision,
        "inference_mode": True,
        "r": adapter.rank,
        "lora_alpha": adapter.rank if adapter.alpha is None else adapter.alpha,
        "use_rslora": adapter.rslora,
        "lora_dropout": adapter.dropout,
        "bias": "none",
        "target_modules": targets,
        "layers_to_transform": layers,
        "trainable_token_indices": adapter.trainable_tokens or None,
    }


def from_peft(found: Adapter, model: CodeGenConfig, adapter: AdapterConfig) -> Any:
    """The arrays with which a run goes on training an adapter, as NumPy arrays in float32.

    Raises:
        UserError: if the adapter has other settings than the run.
    """
    layers = adapter.layers or list(range(model.n_layer))
    blocks = [target for target in adapter.modules if target != "lm_head"]
    expected = {tensor_in_layer(layer, TENSORS[target]) for target in blocks for layer in layers}
    expected |= {TOP["head"]} if "lm_head" in adapter.modules else set()
    for name in sorted(expected ^ found.updates.keys()):
        has = "has an" if name in found.updates else "lacks the"
        raise UserError(
            f"adapter.targets: {found.source} {has} update of {name.removesuffix('.weight')}; give the targets and the "
            "layers that it has"
        )
    for name, is_set in {
        "use_dora": any(update.magnitude is not None for update in found.updates.values()),
        "modules_to_save": bool(found.replaced),
    }.items():
        require(not is_set, f"adapter.init_from: {found.source} has {name}, which training does not support")
    for update in found.updates.values():
        rank = update.a.shape[0]
        require(rank == adapter.rank, f"adapter.rank: is {adapter.rank}, but {found.source} has {rank}")
        require(
            math.isclose(update.scale, adapter.scale),
            f"adapter.alpha: gives updates a factor of {adapter.scale:g}, but {found.source} has {update.scale:g}; set "
            "adapter.alpha and adapter.rslora as in its adapter_config.json",
        )
    rows = found.rows.get(TOP["embedding"])
    ids, wanted = list(rows.ids) if rows else [], adapter.trainable_tokens or []
    require(found.rows.keys() <= {TOP["embedding"]}, f"adapter.init_from: {found.source} trains rows of lm_head")
    require(
        ids == wanted,
        f"adapter.trainable_tokens: are {wanted}, but {found.source} has {ids}; give the same ids in the same order",
    )

    def arrays(target: str, update: Update) -> dict[str, np.ndarray]:
        a, b = update.a.T.astype(np.float32), update.b.astype(np.float32)
        H, K, R = model.n_head, model.head_dim, adapter.rank
        if target == "out_proj":
            a = a.reshape(H, K, R)
        if target != "qkv_proj":
            return {"a": a, "b": b.T}
        b_RPHK = np.empty((R, len(QKV), H, K), np.float32)
        for p, name in enumerate(QKV):
            read_projection(model, found.mp_num, name, b, (slice(0, R), slice(0, H), slice(0, K)), b_RPHK[:, p])
        return {"a": a, "b": b_RPHK}

    made: dict[str, Any] = {"blocks": {}} if blocks else {}
    for target in blocks:
        updates = [found.updates[tensor_in_layer(layer, TENSORS[target])] for layer in layers]
        of_layers = [arrays(target, update) for update in updates]
        made["blocks"][target] = jax.tree.map(lambda *values: np.stack(values), *of_layers)
    if "lm_head" in adapter.modules:
        made["lm_head"] = arrays("lm_head", found.updates[TOP["head"]])
    if rows:
        made["tokens"] = rows.values.astype(np.float32)
    return made


def read_adapter_checkpoint(checkpoint: epath.Path, run: Run, model: CodeGenConfig, mp_num: int) -> Adapter:
    """Read the adapter in a checkpoint of a run that trains one; `run` is the checkpoint's metadata.

    Raises:
        Damaged: if there is evidence of damage.
        UserError: if it has no adapter, or one for a model of other sizes.
    """
    if run.adapter is None:
        raise UserError(f"{checkpoint}: a checkpoint of all weights, not of an adapter; use it as the model itself")
    for name in ("n_layer", "n_embd", "n_head", "head_dim", "rotary_dim", "vocab_size"):
        theirs, ours = getattr(run.model, name), getattr(model, name)
        require(theirs == ours, f"{checkpoint}: an adapter for a model with {name} {theirs}, but the model has {ours}")
    config = replace(AdapterConfig(**run.config["adapter"]), trainable_tokens=run.adapter["trainable_tokens"])
    one = SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), abstract_adapter(run.model, config)
    )
    params = jax.device_get(read_item(checkpoint, PARAMS, abstract))
    for name, value in fingerprints({PARAMS: params}).items():
        if run.fingerprints is None or run.fingerprints.get(name) != value:
            raise damaged(checkpoint, f"{name} differs from what was written")
    base, source = run.config["init_from"], str(checkpoint)
    adapter = to_peft(params, run.model, config, mp_num, source=source, base=base, tokenizer=run.tokenizer)
    adapter.require_finite()
    return adapter
