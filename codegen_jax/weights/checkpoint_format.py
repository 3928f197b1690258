"""Our own checkpoints as weights: found, read by region, and written piece by piece.

    CHECKPOINT/params     the parameters, an Orbax item: one zarr array each, in OCDBT
    CHECKPOINT/run        config, data and tokenizer files, as JSON

training/checkpoint.py writes the same with the optimizer's state beside it. A folder without `_CHECKPOINT_METADATA` was
cut short while it was written and does not count.
"""

import asyncio
import base64
import dataclasses
import json
import tempfile
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from etils import epath
from orbax.checkpoint import type_handlers

from codegen_jax.config import CodeGenConfig
from codegen_jax.data.tokenizer import Tokenizer, load_tokenizer
from codegen_jax.errors import UserError
from codegen_jax.model.codegen import Params, abstract_params
from codegen_jax.storage import is_remote, open_path
from codegen_jax.weights.base import Index, Weights, dotted, pieces, shapes

CHUNK_BYTES = 128 << 20  # of a parameter on disk, at most: what a conversion holds, and a host reads in vain


class Run(NamedTuple):
    """What a checkpoint says of itself.

    Attributes:
        config: the run's config as nested dicts; of a converted model, its section "model".
        data: of a trained model, tokenizer, number of tokens and content of each source by name.
        tokenizer: that made the data; None if a model was converted without.
    """

    config: dict[str, Any]
    data: dict[str, Any]
    tokenizer: Tokenizer | None

    @property
    def model(self) -> CodeGenConfig:
        return CodeGenConfig(**self.config["model"])


def whole_checkpoints(output: epath.PathLike) -> list[epath.Path]:
    """Folders of a run's checkpoints that were written to their end, oldest first."""
    steps = [p for p in open_path(output).glob("checkpoints/*") if p.name.isdigit() and is_whole(p)]
    return sorted(steps, key=lambda p: int(p.name))


def find_checkpoint(path: epath.PathLike) -> epath.Path | None:
    """The folder of one checkpoint: the path itself, or the newest whole one of a run's output folder."""
    folder = open_path(path)
    return folder if is_whole(folder) else next(reversed(whole_checkpoints(folder)), None)


def is_whole(checkpoint: epath.Path) -> bool:
    return (checkpoint / "_CHECKPOINT_METADATA").exists()


def load_run(checkpoint: epath.Path) -> Run:
    """Config and tokenizer of a checkpoint.

    Raises:
        UserError: if the checkpoint is damaged.
    """
    try:
        record = json.loads((checkpoint / "run" / "metadata").read_text())
        if not record["tokenizer"]:
            return Run(record["config"], record["data"], None)
        with tempfile.TemporaryDirectory() as folder:
            for name, content in record["tokenizer"].items():
                (Path(folder) / name).write_bytes(base64.b64decode(content))
            return Run(record["config"], record["data"], load_tokenizer(folder))
    except (OSError, ValueError, KeyError) as error:
        raise damaged(checkpoint, error) from error


def run_record(config: dict[str, Any], data: dict[str, Any], tokenizer: Tokenizer | None) -> dict[str, Any]:
    """What `load_run` reads."""
    files = {} if tokenizer is None else tokenizer.files()
    encoded = {name: base64.b64encode(content).decode() for name, content in files.items()}
    return {"config": config, "data": data, "tokenizer": encoded}


def save_args(params: Params) -> Any:
    """How parameters are cut into chunks: a layer to itself, so that one layer can be read without the others."""

    def chunks(path: jax.tree_util.KeyPath, leaf: Any) -> ocp.SaveArgs:
        stacked = dotted(path).startswith("blocks.") and len(leaf.shape) > 2
        return ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES, shard_axes=(0,) if stacked else ())

    return jax.tree_util.tree_map_with_path(chunks, params)


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
        self.folder = checkpoint / "params"
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


def write_checkpoint(weights: Weights, folder: Path, progress: Callable[[int], object]) -> None:
    """Write the parameters, in their stored dtypes, and the tokenizer as a checkpoint, a chunk at a time.

    Raises:
        UserError: from the weights; the folder is no checkpoint then.
    """
    handler = _StreamHandler(weights, progress)
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: _Stream(dotted(path), leaf.shape, weights.dtype(dotted(path))),
        abstract_params(weights.config),
    )
    record = run_record({"model": dataclasses.asdict(weights.config)}, {}, weights.tokenizer)
    registry = type_handlers.create_type_handler_registry((_Stream, handler))
    items = ocp.CompositeCheckpointHandler(
        params=ocp.PyTreeCheckpointHandler(type_handler_registry=registry, use_compression=False),
        run=ocp.JsonCheckpointHandler(),
    )
    args = ocp.args.Composite(
        params=ocp.args.PyTreeSave(params, save_args=save_args(params)),  # pyright: ignore[reportCallIssue]
        run=ocp.args.JsonSave(record),  # pyright: ignore[reportCallIssue]
    )
    # in a thread, so that Ctrl-C ends the chunks and then waits for Orbax, whose own threads it would leave behind
    with ocp.Checkpointer(items) as checkpointer, ThreadPoolExecutor(1) as thread:
        try:
            thread.submit(checkpointer.save, folder.absolute(), args).result()
        except BaseException as error:
            handler.stopped = True
            raise handler.failure or error from None  # Orbax also complains of the chunks that are missing then
    if handler.failure is not None:
        raise handler.failure


@dataclasses.dataclass(frozen=True)
class _Stream:
    """A parameter to write, as Orbax sees it: an array whose elements come later."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize


class _StreamHandler(type_handlers.NumpyHandler):
    """Writes a `_Stream` chunk by chunk, and one parameter at a time, where Orbax's own writes whole arrays at once."""

    def __init__(self, weights: Weights, progress: Callable[[int], object]):
        super().__init__(deepcopy_host_arrays=False)
        self.weights, self.progress = weights, progress
        self.turn = asyncio.Semaphore(1)
        self.stopped = False
        self.failure: UserError | None = None

    async def _open_and_write(self, value: Any, tspec: dict[str, Any], ts_context: tensorstore.Context) -> None:
        spec = tensorstore.Spec(tspec)  # pyright: ignore[reportCallIssue]
        array = await tensorstore.open(spec, create=True, open=True, context=ts_context)
        async with self.turn:
            chunk: Any = array.chunk_layout.write_chunk.shape
            writing: deque[Any] = deque()
            for index in pieces(value.shape, chunk):
                if self.stopped:
                    break
                try:
                    region = self.weights.read(value.name, index)  # while TensorStore's threads write the two before
                except UserError as error:  # Orbax would bury it in exceptions of its own
                    self.failure, self.stopped = error, True
                    break
                writing.append(array[index].write(region, can_reference_source_data_indefinitely=True))
                if len(writing) > 2:
                    await writing.popleft()
                self.progress(region.nbytes)
            await asyncio.gather(*writing)
