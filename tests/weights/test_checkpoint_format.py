"""Every reader of a checkpoint's weights notices if they differ from what was written."""

from pathlib import Path

import jax
import numpy as np
import pytest

import codegen_jax
from codegen_jax.config import MeshConfig
from codegen_jax.conversion.convert import convert
from codegen_jax.errors import UserError
from codegen_jax.inference.generator import Generator
from codegen_jax.model.codegen import abstract_params
from codegen_jax.training.loop import train
from codegen_jax.weights.base import chunk_indices, fold_embedding_bias, load_params, shapes
from codegen_jax.weights.checkpoint_format import Damaged
from codegen_jax.weights.fingerprint import Regions
from codegen_jax.weights.open import open_model
from codegen_jax.weights.run_folder import find_checkpoint
from tests.harm import change_a_value, forget_fingerprints, halve
from tests.peers import peer, save, tiny_bpe
from tests.runs import tiny_run

NAMES = ["embedding", "blocks.query", "blocks.ln.scale", "blocks.fc_out", "head", "head_bias"]


@pytest.fixture(params=["float32", "float16"])
def converted(request, tmp_path):
    folder = save(peer(n_layer=3), tmp_path / "hf", tokenizer=tiny_bpe())
    convert(str(folder), str(tmp_path / "ours"), dtype=request.param)
    return tmp_path / "ours"


def readers(tmp_path):
    """Every way in which users read a checkpoint's weights."""
    mesh = MeshConfig(2, 1, 4)
    return {
        "generate": lambda model: codegen_jax.load(model),
        "generate on eight devices": lambda model: codegen_jax.load(model, mesh=mesh, quantize="int8"),
        "convert to hf": lambda model: convert(model, str(tmp_path / "to_hf"), to="hf", mp_num=4),
        "convert to jax": lambda model: convert(model, str(tmp_path / "to_jax")),
        "init_from": lambda model: load_params(open_model(model), abstract_params(open_model(model).config)),
    }


@pytest.mark.parametrize("name", NAMES)
def test_every_reader_notices_a_changed_bit(converted, tmp_path, name):
    change_a_value(converted / "params", name)
    for reader in readers(tmp_path).values():
        with pytest.raises(Damaged, match=f"params: damaged checkpoint \\({name} differs from what was written"):
            reader(str(converted))
    assert not (tmp_path / "to_hf").exists() and not (tmp_path / "to_jax").exists()


def test_every_reader_verifies_all_parameters(converted, tmp_path, monkeypatch):
    opened = []

    def record(*args, **kwargs):
        opened.append(open_model(*args, **kwargs))
        return opened[-1]

    for module in ("inference.generator", "conversion.convert"):
        monkeypatch.setattr(f"codegen_jax.{module}.open_model", record)
    for name, reader in readers(tmp_path).items():
        if name == "init_from":
            weights = record(str(converted))
            load_params(weights, abstract_params(weights.config))
        else:
            reader(str(converted))
    assert len(opened) == 5 and all(weights.fingerprints and not weights.unchecked for weights in opened)


def test_a_run_notices_a_changed_bit_in_init_from(tmp_path, token_folder):
    first = tiny_run(tmp_path / "first", token_folder, training={"steps": 1})
    train(first)
    change_a_value(find_checkpoint(first.output) / "params", "blocks.fc_in")
    second = tiny_run(tmp_path / "second", token_folder, training={"steps": 1}, init_from=first.output)
    with pytest.raises(UserError, match=r"blocks\.fc_in differs from what was written"):
        train(second)
    with pytest.raises(UserError, match=r"blocks\.fc_in differs from what was written"):
        Generator.load(first.output)


def test_a_checkpoint_without_fingerprints_is_read_with_one_warning(converted, caplog):
    forget_fingerprints(converted)
    change_a_value(converted / "params", "head")
    codegen_jax.load(str(converted))
    assert caplog.text.count("without fingerprints; its content is not verified") == 1


def test_regions_are_counted_once_in_any_grid():
    x = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    read = lambda regions, chunk: [regions.add(x[i], tuple(s.start for s in i)) for i in chunk_indices(x.shape, chunk)]
    (whole,) = read(Regions(x.shape), (4, 6))
    assert read(Regions(x.shape), (2, 3)) == [None] * 3 + [whole]
    regions = Regions(x.shape)  # half of it, as one region added twice, then all of it in other regions
    assert regions.add(x[:2], (0, 0)) is None and regions.add(x[:2], (0, 0)) is None
    assert read(regions, (4, 2)) == [None, None, whole]


def test_a_folded_embedding_bias_is_verified_with_the_embedding(tmp_path, token_folder):
    config = tiny_run(tmp_path / "run", token_folder, training={"steps": 1}, model={"embedding_bias": True})
    train(config)
    weights = open_model(config.output)
    for name, shape in shapes(fold_embedding_bias(weights).config).items():
        fold_embedding_bias(weights).read(name, tuple(slice(0, size) for size in shape))
    assert not weights.unchecked


HARMS = {
    "removed": Path.unlink,
    "emptied": lambda file: file.write_bytes(b""),
    "halved": halve,
    "zeroed": lambda file: file.write_bytes(bytes(file.stat().st_size)),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_array_file_is_reported_unless_it_is_never_read(tmp_path, harm):
    folder = save(peer(n_layer=2), tmp_path / "hf", tokenizer=tiny_bpe())
    convert(str(folder), str(tmp_path / "ours"))
    files = [path.relative_to(tmp_path) for path in (tmp_path / "ours/params").rglob("*") if path.is_file()]
    found = []
    for file in files:
        whole = (tmp_path / file).read_bytes()
        HARMS[harm](tmp_path / file)
        try:
            load_params(open_model(str(tmp_path / "ours")), abstract_params(open_model(str(tmp_path / "ours")).config))
        except Damaged:
            found.append(file)
        (tmp_path / file).write_bytes(whole)
    assert len(found) > 3 and {file.parts[-2] for file in found} >= {"params", "d"}


def test_a_missing_file_is_damage_but_an_unreadable_one_is_not(converted):
    record = converted / "run/metadata"
    record.unlink()
    with pytest.raises(Damaged, match="No such file"):
        open_model(str(converted))
    record.mkdir()
    with pytest.raises(UserError, match=r"can't be read \(IsADirectoryError") as error:
        open_model(str(converted))
    assert not isinstance(error.value, Damaged)


def test_with_several_processes_the_fingerprints_of_device_arrays_are_checked(converted, monkeypatch):
    # if no process reads everything, load_params checks the fingerprint of the arrays on their devices
    weights = open_model(str(converted))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    checked = []
    monkeypatch.setattr(weights, "check", checked.append)
    load_params(weights, abstract_params(weights.config))
    assert checked[-1] == weights.fingerprints
