"""The format of our checkpoints on disk: every name and fact of it, and reading it.

    OUTPUT/run.json                       config and data of the run, to recognise it
    OUTPUT/checkpoints/STEP/params        float32 parameters: one zarr array each, in OCDBT, chunks of a layer
    OUTPUT/checkpoints/STEP/optimizer     step, optax's state and the guard's
    OUTPUT/checkpoints/STEP/run           config, data, tokenizer files and the state's fingerprint, as JSON
    OUTPUT/checkpoints/STEP/metrics       validation loss
    OUTPUT/damaged/STEP-TIME              a checkpoint that was found damaged, set aside

A converted model is one such STEP folder with params, in any dtype, and run. A folder without `_CHECKPOINT_METADATA`
was cut short while it was written and does not count.
"""

import base64
import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from etils import epath

from codegen_jax.config import CodeGenConfig
from codegen_jax.data.tokenizer import Tokenizer, load_tokenizer
from codegen_jax.errors import UserError
from codegen_jax.model.codegen import Params
from codegen_jax.storage import is_remote, open_path
from codegen_jax.weights.base import Index, Weights, dotted, shapes

RUN_FILE, CHECKPOINTS, DAMAGED = "run.json", "checkpoints", "damaged"  # in an output folder
PARAMS, OPTIMIZER, RUN = "params", "optimizer", "run"  # items of a checkpoint
COMPLETE = "_CHECKPOINT_METADATA"  # Orbax writes it last
UNFINISHED = "*.orbax-checkpoint-tmp*"  # Orbax's name for a checkpoint that is being written
CHUNK_BYTES = 128 << 20  # of a parameter on disk, at most: what a conversion holds, and a host reads in vain


class Run(NamedTuple):
    """What a checkpoint says of itself.

    Attributes:
        config: the run's config as nested dicts; of a converted model, its section "model".
        data: of a trained model, tokenizer, number of tokens and content of each source by name.
        tokenizer: that made the data; None if a model was converted without.
        fingerprint: of the training state that was saved; None of a converted model.
    """

    config: dict[str, Any]
    data: dict[str, Any]
    tokenizer: Tokenizer | None
    fingerprint: int | None

    @property
    def model(self) -> CodeGenConfig:
        return CodeGenConfig(**self.config["model"])


def whole_checkpoints(output: epath.PathLike) -> list[epath.Path]:
    """Folders of a run's checkpoints that were written to their end, oldest first."""
    steps = [p for p in open_path(output).glob(f"{CHECKPOINTS}/*") if p.name.isdigit() and is_whole(p)]
    return sorted(steps, key=lambda p: int(p.name))


def unfinished_checkpoints(output: epath.PathLike) -> list[epath.Path]:
    """Folders of saves that were begun and not ended."""
    return list(open_path(output).glob(f"{CHECKPOINTS}/{UNFINISHED}"))


def find_checkpoint(path: epath.PathLike) -> epath.Path | None:
    """The folder of one checkpoint: the path itself, or the newest whole one of a run's output folder."""
    folder = open_path(path)
    return folder if is_whole(folder) else next(reversed(whole_checkpoints(folder)), None)


def is_whole(checkpoint: epath.Path) -> bool:
    return (checkpoint / COMPLETE).exists()


def run_record(
    config: dict[str, Any], data: dict[str, Any], tokenizer: Tokenizer | None, fingerprint: int | None = None
) -> dict[str, Any]:
    """What the item "run" holds; of a converted model, without a fingerprint."""
    files = {} if tokenizer is None else tokenizer.files()
    encoded = {name: base64.b64encode(content).decode() for name, content in files.items()}
    record = {"config": config, "data": data, "tokenizer": encoded}
    return record if fingerprint is None else record | {"fingerprint": fingerprint}


def load_run(checkpoint: epath.Path) -> Run:
    """Config and tokenizer of a checkpoint.

    Raises:
        UserError: if the checkpoint is damaged.
    """
    try:
        record = json.loads((checkpoint / RUN / "metadata").read_text())
        tokenizer = None
        if record["tokenizer"]:
            with tempfile.TemporaryDirectory() as folder:
                for name, content in record["tokenizer"].items():
                    (Path(folder) / name).write_bytes(base64.b64decode(content))
                tokenizer = load_tokenizer(folder)
        return Run(record["config"], record["data"], tokenizer, record.get("fingerprint"))
    except (OSError, ValueError, KeyError, UserError) as error:  # the last of the tokenizer's files
        raise damaged(checkpoint, error) from error


def state_items(params: Params, optimizer: dict[str, Any], record: dict[str, Any]) -> ocp.args.Composite:
    """A training state's items as Orbax saves them."""
    return ocp.args.Composite(
        **{
            PARAMS: ocp.args.StandardSave(params, save_args(params)),  # pyright: ignore[reportCallIssue]
            OPTIMIZER: ocp.args.StandardSave(optimizer),  # pyright: ignore[reportCallIssue]
            RUN: ocp.args.JsonSave(record),  # pyright: ignore[reportCallIssue]
        }
    )


def read_item(checkpoint: epath.Path, name: str, abstract: Any) -> Any:
    """PARAMS or OPTIMIZER on the shardings of `abstract`; each process reads what its devices own.

    Without Orbax's barriers, so that one process may fail alone.

    Raises:
        UserError: if it cannot be read.
    """
    args = ocp.args.StandardRestore(abstract)  # pyright: ignore[reportCallIssue]
    try:
        return ocp.StandardCheckpointHandler().restore(checkpoint / name, args=args)
    except Exception as error:  # TensorStore and Orbax raise ValueError, KeyError, RuntimeError, ...
        raise damaged(checkpoint / name, error) from error


def save_args(params: Params) -> Any:
    """How parameters are cut into chunks: a layer to itself, so that one layer can be read without the others."""

    def chunks(path: jax.tree_util.KeyPath, leaf: Any) -> ocp.SaveArgs:
        stacked = dotted(path).startswith("blocks.") and len(leaf.shape) > 2
        return ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES, shard_axes=(0,) if stacked else ())

    return jax.tree_util.tree_map_with_path(chunks, params)


def fingerprint(state: Any) -> int:
    """A 32-bit sum over the state's bits and their places: the same on every mesh, another after almost any change."""
    return int(_fingerprint(state))


@jax.jit
def _fingerprint(state: Any) -> jax.Array:
    def of_leaf(number: int, x: jax.Array) -> jax.Array:
        bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
        place = jnp.full(x.shape, 2 * number + 1, jnp.uint32)
        for axis in range(x.ndim):
            place = place * jnp.uint32(0x9E3779B1) + 2 * jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        return jnp.sum(bits * place)  # place is odd: no changed bit is lost

    return sum((of_leaf(i, x) for i, x in enumerate(jax.tree.leaves(state))), start=jnp.uint32(0))


def damaged(path: epath.Path, error: Exception) -> UserError:
    reason = (str(error) or type(error).__name__).splitlines()[0][:200]
    return UserError(f"{path}: damaged checkpoint ({reason}); move it away to go on from the one before")


class CheckpointWeights(Weights):
    """One checkpoint's parameters.

    Raises:
        UserError: if the checkpoint is damaged.
    """

    def __init__(self, checkpoint: epath.Path):
        run = load_run(checkpoint)
        super().__init__(str(checkpoint), run.model, run.tokenizer)
        self.folder = checkpoint / PARAMS
        self.arrays = {name: self._open(name, shape) for name, shape in shapes(run.model).items()}

    def _open(self, name: str, shape: tuple[int, ...]) -> Any:
        base = f"{self.folder}/" if is_remote(self.folder) else f"file://{self.folder}/"
        kvstore = {"driver": "ocdbt", "base": base, "path": f"{name}/"}
        try:
            array = tensorstore.open({"driver": "zarr", "kvstore": kvstore}).result()
            if array.shape != shape:
                raise ValueError(f"{name} is {array.shape}, not {shape}")
            return array
        except ValueError as error:  # TensorStore's word for files that are missing or damaged, too
            raise damaged(self.folder, error) from error

    def dtype(self, name: str) -> np.dtype:
        return self.arrays[name].dtype.numpy_dtype

    def read(self, name: str, index: Index) -> np.ndarray:
        try:
            return self.arrays[name][index].read().result()
        except ValueError as error:
            raise damaged(self.folder, error) from error
