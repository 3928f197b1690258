"""Write a model as one of our checkpoints, chunk by chunk, without holding a whole parameter in memory."""

import asyncio
import dataclasses
import json
import shutil
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from orbax.checkpoint import type_handlers

from codegen_jax.model.codegen import abstract_params
from codegen_jax.weights.base import Weights, chunk_indices, dotted, shapes
from codegen_jax.weights.checkpoint_format import PARAMS, RUN, RUN_RECORD, run_record, save_args
from codegen_jax.weights.fingerprint import region_fingerprint


def write_checkpoint(weights: Weights, folder: Path, progress: Callable[[int], object]) -> None:
    """Write the parameters, in their stored dtypes, and the tokenizer as a checkpoint, one chunk at a time.

    Raises:
        UserError: if reading the weights fails. In that case the folder is not a valid checkpoint, and all writing to
            it has ended.
    """
    handler = _StreamHandler(weights, progress)
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: _Stream(dotted(path), leaf.shape, weights.dtype(dotted(path))),
        abstract_params(weights.config),
    )
    model = {"model": dataclasses.asdict(weights.config)}
    record = run_record(model, {}, weights.tokenizer, weights.generation_config, handler.fingerprints)
    registry = type_handlers.create_type_handler_registry((_Stream, handler))
    items = ocp.CompositeCheckpointHandler(
        **{
            PARAMS: ocp.PyTreeCheckpointHandler(type_handler_registry=registry, use_compression=False),
            RUN: ocp.JsonCheckpointHandler(),
        }
    )
    args = ocp.args.Composite(
        **{
            PARAMS: ocp.args.PyTreeSave(params, save_args=save_args(params)),  # pyright: ignore[reportCallIssue]
            RUN: ocp.args.JsonSave(record),  # pyright: ignore[reportCallIssue]
        }
    )
    # save in a thread: Ctrl-C then stops after the current chunk and waits for Orbax's threads to finish
    with ocp.Checkpointer(items) as checkpointer, ThreadPoolExecutor(1) as thread:
        try:
            thread.submit(checkpointer.save, folder.absolute(), args).result()
        except BaseException as error:
            handler.stopped = True
            raise handler.failure or error from None
    if handler.failure is not None:
        shutil.rmtree(folder)
        raise handler.failure
    (folder / RUN / RUN_RECORD).write_text(json.dumps(record, allow_nan=False))  # rewrite it, now with fingerprints


@dataclasses.dataclass(frozen=True)
class _Stream:
    """A parameter to write, as presented to Orbax: an array that is read later, chunk by chunk."""

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
    """Writes `_Stream`s one parameter at a time, chunk by chunk; Orbax's own handler writes whole arrays at once."""

    def __init__(self, weights: Weights, progress: Callable[[int], object]):
        super().__init__(deepcopy_host_arrays=False)
        self.weights, self.progress = weights, progress
        self.one_at_a_time = asyncio.Semaphore(1)
        self.fingerprints = {f"{PARAMS}.{name}": 0 for name in shapes(weights.config)}
        self.stopped = False
        self.failure: Exception | None = None

    async def _open_and_write(self, value: Any, tspec: dict[str, Any], ts_context: tensorstore.Context) -> None:
        """Write one parameter. Errors are kept until the end; raised here, they would leave other files unfinished."""
        writing: deque[Any] = deque()
        try:
            spec = tensorstore.Spec(tspec)  # pyright: ignore[reportCallIssue]
            array = await tensorstore.open(spec, create=True, open=True, context=ts_context)
            async with self.one_at_a_time:
                chunk: Any = array.chunk_layout.write_chunk.shape
                for index in chunk_indices(value.shape, chunk):
                    if self.stopped:
                        break
                    region = self.weights.read(value.name, index)  # TensorStore's threads write the previous two
                    first = tuple(part.start for part in index)
                    self.fingerprints[f"{PARAMS}.{value.name}"] += region_fingerprint(region, first)
                    writing.append(array[index].write(region, can_reference_source_data_indefinitely=True))
                    if len(writing) > 2:
                        await writing.popleft()
                    self.progress(region.nbytes)
                self.fingerprints[f"{PARAMS}.{value.name}"] %= 2**32
                await asyncio.gather(*writing)
        except Exception as error:
            self.failure, self.stopped = self.failure or error, True
            await asyncio.gather(*writing, return_exceptions=True)
