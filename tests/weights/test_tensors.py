"""Errors name damaged and malicious files; safetensors' own reader reads the files that we write."""

import json
import os
import pickle
import re

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file as save_torch

from codegen_jax.errors import UserError
from codegen_jax.weights.tensors import TensorStream, open_tensors, write_tensors
from tests.peers import FORMS, peer, save, state


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_storage_gives_the_same_arrays(tmp_path, form):
    model = peer(dtype=torch.float16)
    tensors = open_tensors(save(model, tmp_path, form))
    assert tensors.keys() == state(model).keys()
    for name, array in state(model).items():
        assert tensors[name].shape == array.shape and tensors[name].dtype == array.dtype
        np.testing.assert_array_equal(tensors[name][:], array)
        if array.ndim == 2:
            np.testing.assert_array_equal(tensors[name][3:17, 5:9], array[3:17, 5:9])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kept", [0, 3, 0.5, -1])
def test_a_truncated_file_is_reported_by_name(tmp_path, form, kept):
    save(peer(), tmp_path, form)
    file = sorted([*tmp_path.glob("*.safetensors"), *tmp_path.glob("*.bin")])[-1]
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * kept) if kept == 0.5 else kept])
    with pytest.raises(UserError, match=f"{file.name}: truncated"):
        open_tensors(tmp_path)


@pytest.mark.parametrize("form", ["sharded safetensors", "sharded bin"])
def test_a_missing_shard_is_reported_by_name(tmp_path, form):
    save(peer(), tmp_path, form)
    file = sorted(tmp_path.glob("*-of-*"))[1]
    file.unlink()
    with pytest.raises(UserError, match=f"{file.name}: this shard .* is missing"):
        open_tensors(tmp_path)


@pytest.mark.parametrize("index", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": null}'])
def test_a_damaged_index_is_reported_by_name(tmp_path, index):
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError, match=r"model.safetensors.index.json: not a shard index"):
        open_tensors(tmp_path)


@pytest.mark.parametrize("form", ["sharded safetensors", "sharded bin"])
@pytest.mark.parametrize("place", ["..", "below", "absolute"])
def test_a_shard_outside_the_folder_of_its_index_is_not_read(tmp_path, form, place):
    folder = save(peer(), tmp_path / "model", form)
    shard, (index,) = sorted(folder.glob("*-of-*"))[0], folder.glob("*.index.json")
    name = f"{tmp_path if place == 'absolute' else place}/{shard.name}"
    (folder / "below").mkdir()
    shard.rename(folder / name)
    index.write_text(index.read_text().replace(shard.name, name))
    with pytest.raises(
        UserError, match=re.escape(f"{index}: refers to {name}, which is not a file in the same folder")
    ):
        open_tensors(folder)


def sharded(folder, form):
    """A sharded model: its tensors, the path and content of its index, and functions that load and dump a shard."""
    model = peer()
    save(model, folder, form)
    (index,) = folder.glob("*.index.json")
    load, dump = (torch.load, torch.save) if form == "sharded bin" else (load_torch, save_torch)
    return state(model), index, json.loads(index.read_text()), load, dump


SHARDED = ["sharded safetensors", "sharded bin"]


@pytest.mark.parametrize("form", SHARDED)
def test_the_index_decides_which_copy_of_a_tensor_is_read(tmp_path, form):
    arrays, index, written, load, dump = sharded(tmp_path, form)
    files = sorted(set(written["weight_map"].values()))
    for name, file in written["weight_map"].items():  # a stale copy in an earlier or a later file
        for other in {files[0], files[-1]} - {file}:
            stale = {name: torch.full(arrays[name].shape, 7.0), "stale.weight": torch.zeros(3)}
            dump(load(tmp_path / other) | stale, tmp_path / other)
    tensors = open_tensors(tmp_path)
    assert tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(tensors[name][:], array)
    wanted = written["weight_map"] | {"lm_head.bias": files[0]}
    assert files[0] != written["weight_map"]["lm_head.bias"]
    index.write_text(json.dumps({"weight_map": wanted}))
    np.testing.assert_array_equal(open_tensors(tmp_path)["lm_head.bias"][:], 7)


@pytest.mark.parametrize("form", SHARDED)
def test_a_tensor_missing_from_its_shard_is_reported_with_index_and_shard(tmp_path, form):
    arrays, index, written, load, dump = sharded(tmp_path, form)
    file = written["weight_map"]["lm_head.bias"]
    dump({name: tensor for name, tensor in load(tmp_path / file).items() if name != "lm_head.bias"}, tmp_path / file)
    with pytest.raises(UserError, match=f"{index}: does not match its shards: {file} has no lm_head.bias; download"):
        open_tensors(tmp_path)
    index.write_text(json.dumps({"weight_map": dict.fromkeys([*arrays, "more"], file)}))
    with pytest.raises(
        UserError, match=rf"has no .*; and {len(arrays) + 1 - len(load(tmp_path / file)) - 5} more; dow"
    ):
        open_tensors(tmp_path)


@pytest.mark.parametrize("form", SHARDED)
def test_a_tensor_missing_from_the_index_is_not_read(tmp_path, form):
    arrays, index, written, *_ = sharded(tmp_path, form)
    del written["weight_map"]["transformer.ln_f.bias"]
    index.write_text(json.dumps(written))
    assert open_tensors(tmp_path).keys() == arrays.keys() - {"transformer.ln_f.bias"}


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        import os

        return os.mkdir, (self.path,)


def test_a_pickle_that_refers_to_code_is_rejected_without_running_it(tmp_path):
    torch.save({"lm_head.bias": Malicious(str(tmp_path / "owned"))}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model.bin: its pickle refers to \w+\.mkdir"):
        open_tensors(tmp_path)
    assert not (tmp_path / "owned").exists()


def test_a_bare_pickle_is_rejected(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Malicious(str(tmp_path / "owned"))}))
    with pytest.raises(UserError, match=r"pytorch_model.bin"):
        open_tensors(tmp_path)
    assert not (tmp_path / "owned").exists()


def test_a_bin_file_without_a_state_dict_is_rejected(tmp_path):
    torch.save({"epoch": 3, "state_dict": {}}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="epoch is a int, not a tensor"):
        open_tensors(tmp_path)
    torch.save([torch.zeros(3)], tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="a list, not a dict"):
        open_tensors(tmp_path)


@pytest.mark.parametrize(
    ("tensor", "words"),
    [(torch.eye(3).to_sparse(), "layout torch.sparse_coo"), (torch.zeros(3, device="meta"), "meta device")],
)
def test_sparse_and_meta_tensors_in_a_bin_file_are_rejected(tmp_path, tensor, words):
    torch.save({"lm_head.bias": tensor}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=f"pytorch_model.bin: lm_head.bias (is|has) .*{words}"):
        open_tensors(tmp_path)


def test_a_folder_without_weights_is_rejected(tmp_path):
    with pytest.raises(UserError, match=r"no model.safetensors or pytorch_model.bin"):
        open_tensors(tmp_path)


@pytest.mark.parametrize("size", ["5GB", "1KB"])
def test_safetensors_reads_files_written_in_chunks(tmp_path, size):
    arrays = {f"t{i}": np.random.default_rng(i).standard_normal((7, i + 1)).astype(np.float16) for i in range(40)}
    streams = {
        name: TensorStream(array.shape, array.dtype, lambda array=array: (row for row in array))
        for name, array in arrays.items()
    }
    progress = []
    write_tensors(tmp_path, streams, progress.append, max_shard_size=size)
    read = {name: array for file in tmp_path.glob("*.safetensors") for name, array in load_file(file).items()}
    assert read.keys() == arrays.keys() and sum(progress) == sum(array.nbytes for array in arrays.values())
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array)
    index = tmp_path / "model.safetensors.index.json"
    assert index.exists() == (size == "1KB")
    if index.exists():
        written = json.loads(index.read_text())
        assert written["metadata"]["total_size"] == sum(progress) and written["weight_map"].keys() == arrays.keys()
    assert open_tensors(tmp_path).keys() == arrays.keys()


def test_all_data_is_flushed_to_disk_before_the_writer_returns(tmp_path, monkeypatch):
    flushed, fsync = {}, os.fsync

    def record(file):
        fsync(file)
        status = os.fstat(file)
        flushed[status.st_ino] = max(flushed.get(status.st_ino, 0), status.st_size)

    monkeypatch.setattr(os, "fsync", record)
    # small rows stay in Python's buffer, large ones bypass it
    for size, shard in ((80, "2KB"), (100_000, "2MB")):
        rows = np.ones((4, size), np.float32)
        stream = TensorStream(rows.shape, rows.dtype, lambda rows=rows: iter(rows))
        (tmp_path / shard).mkdir()
        write_tensors(tmp_path / shard, {"a": stream, "b": stream}, lambda _: None, max_shard_size=shard)
        files = list((tmp_path / shard).glob("*.safetensors"))
        assert len(files) == 2
        for file in files:
            assert flushed[file.stat().st_ino] == file.stat().st_size > rows.nbytes
