"""Open a model: a hub id, a Hugging Face folder, a jaxformer checkpoint, or one of our runs or checkpoints."""

import math
from collections.abc import Sequence

from etils import epath

from codegen_jax.config import CodeGenConfig
from codegen_jax.data.tokenizer import FILES
from codegen_jax.data.tokenizer_metadata import NAMED_TEMPLATES, NAMES
from codegen_jax.errors import UserError, require
from codegen_jax.hub import hub_files
from codegen_jax.storage import local_copy, open_path
from codegen_jax.weights.adapter import AdaptedWeights, Adapter, source_of
from codegen_jax.weights.adapter_layout import read_adapter_checkpoint
from codegen_jax.weights.base import StoredWeights, Weights, fold_embedding_bias
from codegen_jax.weights.checkpoint_format import CheckpointWeights, Run, load_run
from codegen_jax.weights.huggingface import open_huggingface
from codegen_jax.weights.huggingface_layout import MP_NUM, HuggingFaceWeights
from codegen_jax.weights.jaxformer import JaxformerWeights, is_jaxformer
from codegen_jax.weights.not_a_model import describe
from codegen_jax.weights.peft import CONFIG_FILE, TENSORS_FILE, is_peft, read_peft
from codegen_jax.weights.run_folder import find_checkpoint
from codegen_jax.weights.sampled_hash import sampled_hash


def open_model(
    model: str,
    mp_num: int | None = None,
    config: CodeGenConfig | None = None,
    allow_nonfinite: bool = False,
    adapters: Sequence[str] = (),
) -> Weights:
    """Find and open a model. Only headers are read at this point.

    Args:
        model: a folder (local, gs:// or s3://), or a hub id such as "Salesforce/codegen-350M-mono", which is downloaded
            to the hub cache; append "@REVISION" for a branch, tag or commit. Remote folders are copied, except for our
            own checkpoints, which are read in place as needed.
        mp_num: groups of query, value and key in Hugging Face and jaxformer weights; None means mp_num from config.json
            for Hugging Face weights, and 4 otherwise.
        config: the model config, for jaxformer weights, which do not specify their number of heads.
        allow_nonfinite: read NaN and infinities with a warning, instead of refusing them.
        adapters: adapters to merge, as FOLDER or FOLDER=WEIGHT; see `open_adapter`.

    Raises:
        UserError: if the model or an adapter does not exist, its files are damaged, or they do not fit together.
    """
    checkpoint = find_checkpoint(model)
    run = None if checkpoint is None else load_run(checkpoint)
    if run is not None and run.adapter is not None:  # a run that has trained an adapter stands for the adapted model
        assert checkpoint is not None
        return _open_adapted(checkpoint, run, allow_nonfinite, adapters)
    weights = _open(model, mp_num, config) if checkpoint is None else CheckpointWeights(checkpoint, run)
    weights.allow_nonfinite = allow_nonfinite
    if not adapters:
        return weights
    opened = []
    for adapter in adapters:
        folder, factor = split_factor(adapter)
        opened.append((open_adapter(folder, weights.config, mp_num or mp_num_of(weights)), factor))
    return AdaptedWeights(fold_embedding_bias(weights), opened)


def _open_adapted(checkpoint: epath.Path, run: Run, allow_nonfinite: bool, adapters: Sequence[str]) -> Weights:
    """The model on which a run trained its adapter, with that adapter and others."""
    assert run.adapter is not None
    base, merged, groups = run.config["init_from"], run.config["init_adapters"], run.adapter["mp_num"]
    named = " and ".join([base, *merged])
    remedy = "restore it" if merged else f"give the model as it was, with --adapter {checkpoint}"
    try:
        below = open_model(base, config=run.model, allow_nonfinite=allow_nonfinite, adapters=merged)
        own = read_adapter_checkpoint(checkpoint, run, below.config, groups)
    except UserError as error:
        raise UserError(f"{checkpoint}: an adapter for {base}: {error}") from error
    require(
        sampled_hash(below) == run.adapter["hash"],
        f"{checkpoint}: {named} has other weights than when this adapter was trained; {remedy}",
    )
    opened = [(own, 1.0)]
    for adapter in adapters:
        folder, factor = split_factor(adapter)
        opened.append((open_adapter(folder, below.config, groups), factor))
    adapted = AdaptedWeights(fold_embedding_bias(below), opened, tokenizer=run.tokenizer)
    adapted.config, adapted.generation_config = run.model, run.generation_config
    return adapted


def split_factor(adapter: str) -> tuple[str, float]:
    """Split FOLDER=WEIGHT; the weight is 1 if it is left out, and no part of the name of an existing folder."""
    folder, equals, text = adapter.rpartition("=")
    try:
        factor = float(text) if equals and not open_path(adapter).exists() else None
    except ValueError:
        factor = None
    if factor is None:
        return adapter, 1.0
    require(math.isfinite(factor), f"adapter: {adapter}: the weight must be a finite number")
    return folder, factor


def mp_num_of(weights: Weights) -> int:
    """The groups in qkv_proj of a model, and so of its adapters: 4 where the format does not have them."""
    of = source_of(weights)
    return of.mp_num if isinstance(of, HuggingFaceWeights) else MP_NUM


def open_adapter(adapter: str, model: CodeGenConfig, mp_num: int = MP_NUM, below: Sequence[str] = ()) -> Adapter:
    """Find and read an adapter.

    Args:
        adapter: a PEFT folder (local, gs:// or s3://), a hub id, or a checkpoint or the output folder of a run that
            trained an adapter.
        model: config of the model that it is for.
        mp_num: groups in qkv_proj of that model.
        below: adapters that are merged into the model before this one.

    Raises:
        UserError: if it is not an adapter, is for another model, or is damaged.
    """
    checkpoint = find_checkpoint(adapter)
    if checkpoint is not None:
        run = load_run(checkpoint)
        merged = run.config.get("init_adapters") or []
        require(
            merged == list(below),
            f"{adapter}: was trained on top of other adapters (init_adapters: {merged}), so it can't be used without "
            "them; give this run itself as the model",
        )
        return read_adapter_checkpoint(checkpoint, run, model, mp_num)
    folder = local_copy(adapter)
    if not folder.exists():
        either = [TENSORS_FILE, "adapter_model.bin"]
        folder = hub_files(
            adapter, [CONFIG_FILE, *FILES, *NAMES, NAMED_TEMPLATES], either=either, needs=[[CONFIG_FILE], either]
        )
    require(is_peft(folder), f"{adapter}: not an adapter; it has no {CONFIG_FILE} and no checkpoint of an adapter")
    return read_peft(folder, model, mp_num)


def _open(model: str, mp_num: int | None, config: CodeGenConfig | None) -> StoredWeights:
    """Open a model that is not one of our checkpoints."""
    folder = local_copy(model)
    if not folder.exists():
        # prefer safetensors: a repository may also have the same weights as .bin files, or only .bin files
        weights = ["model*.safetensors", "pytorch_model*.bin"]
        folder = hub_files(model, ["*.json", *NAMES, NAMED_TEMPLATES], either=weights, needs=[["config.json"], weights])
    if is_jaxformer(folder):
        return JaxformerWeights(folder, mp_num, config)
    if (folder / "config.json").exists():
        return open_huggingface(folder, mp_num)
    # a remote folder was copied; name the original in the message
    raise UserError(f"{model}: {describe(folder).replace(str(folder), model)}")
