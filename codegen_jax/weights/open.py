"""Where a model is: a hub id, a Hugging Face folder, a jaxformer checkpoint, or a run or checkpoint of ours."""

from pathlib import Path

from codegen_jax.config import CodeGenConfig
from codegen_jax.errors import UserError
from codegen_jax.storage import hub_id, local_copy
from codegen_jax.weights.base import Weights
from codegen_jax.weights.checkpoint_format import CheckpointWeights
from codegen_jax.weights.huggingface import open_huggingface
from codegen_jax.weights.jaxformer import JaxformerWeights, is_jaxformer
from codegen_jax.weights.run_folder import find_checkpoint


def open_model(model: str, mp_num: int | None = None, config: CodeGenConfig | None = None) -> Weights:
    """Find a model; nothing but headers is read yet.

    Args:
        model: a folder, local or gs:// or s3://, or a hub id such as "Salesforce/codegen-350M-mono", which is
            downloaded to the hub's cache; "...@REVISION" takes that branch, tag or commit. Of a checkpoint of ours only
            what is needed is read.
        mp_num: groups of query, value and key in Hugging Face and jaxformer weights; None takes config.json's mp_num,
            or 4.
        config: of the network, for jaxformer weights, which do not tell their heads.

    Raises:
        UserError: if there is no such model, or its files are damaged.
    """
    checkpoint = find_checkpoint(model)
    if checkpoint is not None:
        return CheckpointWeights(checkpoint)
    folder = local_copy(model)
    if not folder.exists():
        folder = _download(model)
    if is_jaxformer(folder):
        return JaxformerWeights(folder, mp_num, config)
    if (folder / "config.json").exists():
        return open_huggingface(folder, mp_num)
    raise UserError(
        f"{model}: no whole checkpoint here, nor a Hugging Face model (config.json) or jaxformer's (model/0.npz)"
    )


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repository, revision = hub_id(name)

    def download(weights: str) -> Path:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=["*.json", "merges.txt", weights]))

    try:
        # safetensors first; a repository has .bin files of the same weights besides, or has only those
        folder = download("model*.safetensors")
        return folder if list(folder.glob("model*.safetensors")) else download("pytorch_model*.bin")
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{name}: neither a folder on this machine nor a model from the hub ({reason})") from error
