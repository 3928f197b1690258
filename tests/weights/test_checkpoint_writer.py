"""A checkpoint written in chunks contains exactly what was read, with only a few chunks in memory at a time."""

import asyncio
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
import tensorstore
from etils import epath

from codegen_jax.config import CodeGenConfig
from codegen_jax.errors import UserError
from codegen_jax.weights import checkpoint_writer
from codegen_jax.weights.base import Weights, shapes
from codegen_jax.weights.checkpoint_format import CheckpointWeights
from codegen_jax.weights.checkpoint_writer import write_checkpoint
from codegen_jax.weights.run_folder import find_checkpoint

CONFIG = CodeGenConfig(n_layer=12, n_embd=16, n_head=2, rotary_dim=4, vocab_size=50)


class RandomWeights(Weights):
    """Random float32 and bfloat16 weights that record each read, and fail in layer 3 of the parameter `fails_at`."""

    def __init__(self, fails_at=None):
        super().__init__("random", CONFIG, None)
        rng = np.random.default_rng(0)
        dtypes = [np.float32, ml_dtypes.bfloat16]
        self.arrays = {
            name: rng.standard_normal(shape).astype(dtypes[number % 2])
            for number, (name, shape) in enumerate(shapes(CONFIG).items())
        }
        self.regions, self.fails_at = [], fails_at

    def dtype(self, name):
        return self.arrays[name].dtype

    def read(self, name, index):
        self.regions.append((name, index))
        if name == self.fails_at and index[0].start == 3:
            raise UserError("random: this layer is damaged")
        return self.arrays[name][index]


def test_weights_are_read_back_bit_for_bit_and_progress_counts_all_bytes(tmp_path):
    weights, progress = RandomWeights(), []
    write_checkpoint(weights, tmp_path / "model", progress.append)
    written = CheckpointWeights(epath.Path(tmp_path / "model"))
    assert written.config == CONFIG and written.tokenizer is None
    for name, array in weights.arrays.items():
        assert written.dtype(name) == array.dtype
        np.testing.assert_array_equal(written.read(name, tuple(slice(0, size) for size in array.shape)), array)
    assert sum(progress) == sum(array.nbytes for array in weights.arrays.values())


def test_each_matrix_of_each_layer_is_read_once_and_separately(tmp_path):
    weights = RandomWeights()
    write_checkpoint(weights, tmp_path / "model", lambda _: None)
    layers = [index[0] for name, index in weights.regions if name == "blocks.query"]
    assert layers == [slice(layer, layer + 1) for layer in range(CONFIG.n_layer)]
    assert len(weights.regions) == len({str(region) for region in weights.regions})


def test_an_unreadable_chunk_stops_writing_and_leaves_no_checkpoint(tmp_path):
    weights = RandomWeights(fails_at="blocks.key")
    with pytest.raises(UserError, match="random: this layer is damaged"):
        write_checkpoint(weights, tmp_path / "model", lambda _: None)
    assert weights.regions[-1][0] == "blocks.key" and weights.regions[-1][1][0].start == 3
    assert find_checkpoint(tmp_path / "model") is None


def test_an_error_is_raised_only_after_all_writing_has_ended(tmp_path, monkeypatch):
    opening = []

    async def open_slowly(spec, **kwargs):
        opening.append(spec)
        await asyncio.sleep(0 if "blocks.key" in str(spec) else 0.2)
        array = await tensorstore.open(spec, **kwargs)
        opening.remove(spec)
        return array

    monkeypatch.setattr(checkpoint_writer, "tensorstore", SimpleNamespace(open=open_slowly, Spec=tensorstore.Spec))
    with pytest.raises(UserError, match="random: this layer is damaged"):
        write_checkpoint(RandomWeights(fails_at="blocks.key"), tmp_path / "model", lambda _: None)
    assert opening == []


def test_at_most_three_chunks_wait_to_be_written(tmp_path, monkeypatch):
    # simulates a slow disk: a write completes only when it is awaited
    waiting, most = 0, 0

    class SlowArray:
        def __init__(self, array):
            self.array, self.chunk_layout = array, array.chunk_layout

        def __getitem__(self, index):
            return SimpleNamespace(write=lambda region, **options: self.write(index, region, options))

        def write(self, index, region, options):
            nonlocal waiting, most
            waiting += 1
            most = max(most, waiting)

            async def written():
                nonlocal waiting
                await self.array[index].write(region, **options)
                waiting -= 1

            return written()

    async def open_slowly(*args, **kwargs):
        return SlowArray(await tensorstore.open(*args, **kwargs))

    monkeypatch.setattr(checkpoint_writer, "tensorstore", SimpleNamespace(open=open_slowly, Spec=tensorstore.Spec))
    write_checkpoint(RandomWeights(), tmp_path / "model", lambda _: None)
    assert (waiting, most) == (0, 3)
    assert find_checkpoint(tmp_path / "model") is not None
