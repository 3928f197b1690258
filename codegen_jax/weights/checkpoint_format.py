"""The on-disk format of our checkpoints: its layout, how to read it, and what counts as damage.

    OUTPUT/run.json                       config and data that identify the run
    OUTPUT/checkpoints/STEP/params        float32 parameters that are trained, those of the model or of an adapter: one
                                          zarr array each, in OCDBT, in chunks of one layer
    OUTPUT/checkpoints/STEP/optimizer     step, optax state and the guard's statistics (training/guard.py)
    OUTPUT/checkpoints/STEP/run           config, data, tokenizer files and fingerprints, as JSON
    OUTPUT/checkpoints/STEP/metrics       validation loss
    OUTPUT/damaged/STEP-TIME              a damaged checkpoint that was set aside

A converted model is one such STEP folder with only params, in any dtype, and run. A folder without
`_CHECKPOINT_METADATA` is an interrupted write and is ignored.
"""

import base64
import json
import logging
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from etils import epath

from codegen_jax.config import CodeGenConfig
from codegen_jax.data.tokenizer import Tokenizer, load_tokenizer
from codegen_jax.errors import UserError
from codegen_jax.model.codegen import Params
from codegen_jax.storage import is_remote
from codegen_jax.weights.base import Index, StoredWeights, dotted, shapes
from codegen_jax.weights.fingerprint import Regions
from codegen_jax.weights.generation_config import GenerationConfig

log = logging.getLogger(__name__)

PARAMS, OPTIMIZER, RUN = "params", "optimizer", "run"  # items of a checkpoint
RUN_RECORD = "metadata"  # Orbax's file name for a JSON item
# prefixes of TensorStore errors about data that is missing, truncated, changed or undecodable
LOST = ("NOT_FOUND:", "OUT_OF_RANGE:", "DATA_LOSS:", "FAILED_PRECONDITION:")
METADATA = "_METADATA"  # file with the names and shapes of an item's arrays, as JSON
# Maximum size of a chunk on disk. It bounds a conversion's memory, and the bytes that a host reads beyond its shards.
CHUNK_BYTES = 128 << 20


class Run(NamedTuple):
    """The metadata of a checkpoint.

    Attributes:
        config: the run's config as nested dicts; for a converted model, only the section "model".
        data: the identity (tokenizer, number of tokens, content hash, ...) of each source of a trained model, by name;
            empty for a converted model.
        tokenizer: the tokenizer of the data; None if a model was converted without one.
        generation_config: settings of the converted model, or of the model from which training started; may be empty.
        adapter: if an adapter was trained, its resolved `trainable_tokens`; and of the model below it, `mp_num`, its
            `sampled_hash` as `hash`, whether it has adapters itself (`on_adapters`), and if not, as `base` the
            fingerprints of its parameters in the dtypes in which they were loaded; else None.
        fingerprints: fingerprints of the saved arrays, by path in the training state ("params.head"). A converted model
            has them for its parameters only. None in checkpoints written before fingerprints existed.
    """

    config: dict[str, Any]
    data: dict[str, Any]
    tokenizer: Tokenizer | None
    generation_config: GenerationConfig
    fingerprints: dict[str, int] | None
    adapter: dict[str, Any] | None = None

    @property
    def model(self) -> CodeGenConfig:
        return CodeGenConfig(**self.config["model"])


def run_record(
    config: dict[str, Any],
    data: dict[str, Any],
    tokenizer: Tokenizer | None,
    generation_config: GenerationConfig,
    fingerprints: dict[str, int],
    adapter: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of the item "run"."""
    files = {} if tokenizer is None else tokenizer.files()
    encoded = {name: base64.b64encode(content).decode() for name, content in files.items()}
    return {
        "config": config,
        "data": data,
        "tokenizer": encoded,
        "generation_config": generation_config,
        "fingerprints": fingerprints,
        "adapter": adapter,
    }


def load_run(checkpoint: epath.Path) -> Run:
    """Load the metadata of a checkpoint.

    Raises:
        Damaged: if the metadata is missing or does not parse.
        UserError: if it can't be read.
    """
    try:
        record = json.loads((checkpoint / RUN / RUN_RECORD).read_text())
        tokenizer = None
        if record["tokenizer"]:
            with tempfile.TemporaryDirectory() as folder:
                for name, content in record["tokenizer"].items():
                    (Path(folder) / name).parent.mkdir(exist_ok=True)
                    (Path(folder) / name).write_bytes(base64.b64decode(content))
                tokenizer = load_tokenizer(folder)
        generation_config = record.get("generation_config", {})
        return Run(
            record["config"],
            record["data"],
            tokenizer,
            generation_config,
            record.get("fingerprints"),
            record.get("adapter"),
        )
    except (ValueError, KeyError, UserError) as error:  # UserError comes from the tokenizer files
        raise damaged(checkpoint, error) from error
    except OSError as error:
        raise unreadable(checkpoint, error) from error


def state_items(params: Params, optimizer: dict[str, Any], record: dict[str, Any]) -> ocp.args.Composite:
    """The items of a training state, as arguments for Orbax."""
    return ocp.args.Composite(
        **{
            PARAMS: ocp.args.StandardSave(params, save_args(params)),  # pyright: ignore[reportCallIssue]
            OPTIMIZER: ocp.args.StandardSave(optimizer),  # pyright: ignore[reportCallIssue]
            RUN: ocp.args.JsonSave(record),  # pyright: ignore[reportCallIssue]
        }
    )


def read_item(checkpoint: epath.Path, name: str, abstract: Any) -> Any:
    """Read PARAMS or OPTIMIZER with the shardings of `abstract`; each process reads its devices' shards.

    Orbax's barriers are not used, so one process can fail without blocking the others.

    Raises:
        Damaged: if there is evidence of damage.
        UserError: if the item can't be read.
    """
    handler, args = ocp.StandardCheckpointHandler(), ocp.args.StandardRestore(abstract)  # pyright: ignore
    try:
        json.loads((checkpoint / name / METADATA).read_text())  # Orbax itself does not fail if the file is missing
        handler.metadata(checkpoint / name)
    except (LookupError, TypeError, AttributeError) as error:  # JSON, but not what Orbax writes
        raise damaged(checkpoint / name, f"{METADATA} does not parse: {error}") from error
    except Exception as error:
        raise unreadable(checkpoint / name, error) from error
    try:
        return handler.restore(checkpoint / name, args=args)
    except Exception as error:  # TensorStore and Orbax raise ValueError, KeyError, RuntimeError, ...
        raise unreadable(checkpoint / name, error) from error


def save_args(params: Params) -> Any:
    """How parameters are split into chunks: no chunk spans two layers, so a layer can be read without the others."""

    def chunks(path: jax.tree_util.KeyPath, leaf: Any) -> ocp.SaveArgs:
        stacked = dotted(path).startswith("blocks.") and len(leaf.shape) > 2
        return ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES, shard_axes=(0,) if stacked else ())

    return jax.tree_util.tree_map_with_path(chunks, params)


class Damaged(UserError):
    """A checkpoint provably differs from what was written, as opposed to an access error, which may be temporary."""


def damaged(path: epath.Path, reason: object) -> Damaged:
    return Damaged(f"{path}: damaged checkpoint ({_line(reason)}); move it away to resume from the previous one")


def unreadable(path: epath.Path, error: Exception) -> UserError:
    """Convert an exception raised while reading a checkpoint into an error for the user.

    It is `Damaged` if a file is missing, is truncated, fails its checksum or is not valid JSON. Everything else, such
    as an unresponsive network or disk, permissions, memory or an unknown error, may be temporary.
    """
    cause: BaseException | None = error
    while cause is not None:
        # TensorStore raises ValueError for everything; the message begins with a status name
        is_lost = isinstance(cause, ValueError) and str(cause).startswith(LOST)
        if is_lost or isinstance(cause, FileNotFoundError | json.JSONDecodeError):
            return damaged(path, cause)
        cause = cause.__cause__
    return UserError(f"{path}: can't be read ({type(error).__name__}: {_line(error)}); it may be intact, try again")


def _line(reason: object) -> str:
    return (str(reason) or type(reason).__name__).splitlines()[0][:200]


class CheckpointWeights(StoredWeights):
    """The parameters of one checkpoint. Each is verified as soon as all of its regions have been read.

    Raises:
        Damaged: if there is evidence of damage; also later, when a region is read.
        UserError: if the checkpoint can't be read.
    """

    def __init__(self, checkpoint: epath.Path, run: Run | None = None):
        run = run or load_run(checkpoint)
        super().__init__(str(checkpoint), run.model, run.tokenizer)
        self.folder, self.generation_config = checkpoint / PARAMS, run.generation_config
        self.arrays = {name: self._open(name, shape) for name, shape in shapes(run.model).items()}
        self.unchecked: dict[str, Regions] = {}
        if run.fingerprints is None:
            log.warning(f"{checkpoint}: written by an older version without fingerprints; its content is not verified")
        else:
            self.fingerprints = {name: run.fingerprints[f"{PARAMS}.{name}"] for name in self.arrays}
            self.unchecked = {name: Regions(shape) for name, shape in shapes(run.model).items()}

    def _open(self, name: str, shape: tuple[int, ...]) -> Any:
        base = f"{self.folder}/" if is_remote(self.folder) else f"file://{self.folder}/"
        kvstore = {"driver": "ocdbt", "base": base, "path": f"{name}/"}
        try:
            array = tensorstore.open({"driver": "zarr", "kvstore": kvstore}).result()
        except ValueError as error:
            raise unreadable(self.folder, error) from error
        if array.shape != shape:
            raise damaged(self.folder, f"{name} has shape {array.shape}, expected {shape}")
        return array

    def dtype(self, name: str) -> np.dtype:
        return self.arrays[name].dtype.numpy_dtype

    def read_stored(self, name: str, index: Index) -> np.ndarray:
        try:
            region = self.arrays[name][index].read().result()
        except ValueError as error:
            raise unreadable(self.folder, error) from error
        if name in self.unchecked:
            total = self.unchecked[name].add(region, tuple(part.start for part in index))
            if total is not None:
                self.check({name: total})
                del self.unchecked[name]
        return region

    def check(self, found: dict[str, int]) -> None:
        for name, fingerprint in found.items():
            if fingerprint != self.fingerprints[name]:
                raise damaged(self.folder, f"{name} differs from what was written: bits have changed")
