"""Open a model: a hub id, a Hugging Face folder, a jaxformer checkpoint, or one of our runs or checkpoints."""

from codegen_jax.config import CodeGenConfig
from codegen_jax.data.tokenizer_metadata import NAMED_TEMPLATES, NAMES
from codegen_jax.errors import UserError
from codegen_jax.hub import hub_files
from codegen_jax.storage import local_copy
from codegen_jax.weights.base import StoredWeights
from codegen_jax.weights.checkpoint_format import CheckpointWeights
from codegen_jax.weights.huggingface import open_huggingface
from codegen_jax.weights.jaxformer import JaxformerWeights, is_jaxformer
from codegen_jax.weights.not_a_model import describe
from codegen_jax.weights.run_folder import find_checkpoint


def open_model(
    model: str, mp_num: int | None = None, config: CodeGenConfig | None = None, allow_nonfinite: bool = False
) -> StoredWeights:
    """Find and open a model. Only headers are read at this point.

    Args:
        model: a folder (local, gs:// or s3://), or a hub id such as "Salesforce/codegen-350M-mono", which is downloaded
            to the hub cache; append "@REVISION" for a branch, tag or commit. Remote folders are copied, except for our
            own checkpoints, which are read in place as needed.
        mp_num: groups of query, value and key in Hugging Face and jaxformer weights; None means mp_num from config.json
            for Hugging Face weights, and 4 otherwise.
        config: the model config, for jaxformer weights, which do not specify their number of heads.
        allow_nonfinite: read NaN and infinities with a warning, instead of refusing them.

    Raises:
        UserError: if the model does not exist or its files are damaged.
    """
    weights = _open(model, mp_num, config)
    weights.allow_nonfinite = allow_nonfinite
    return weights


def _open(model: str, mp_num: int | None, config: CodeGenConfig | None) -> StoredWeights:
    checkpoint = find_checkpoint(model)
    if checkpoint is not None:
        return CheckpointWeights(checkpoint)
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
