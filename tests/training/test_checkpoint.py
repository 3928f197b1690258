"""Checkpoints: which are kept, exact restoring on any mesh, and what happens if one is damaged."""

import json
import shutil
from contextlib import closing
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from codegen_jax.config import MeshConfig
from codegen_jax.errors import RUN_LOG, UserError
from codegen_jax.sharding import make_mesh
from codegen_jax.training import checkpoint
from codegen_jax.training.checkpoint import Checkpoints
from codegen_jax.training.resolve import resolve
from codegen_jax.training.step import abstract_state, init_state
from codegen_jax.weights.base import load_params, local_bytes
from codegen_jax.weights.checkpoint_format import CheckpointWeights, load_run
from codegen_jax.weights.fingerprint import fingerprints
from codegen_jax.weights.run_folder import find_checkpoint
from tests.harm import change_a_value, flip_a_bit, forget_fingerprints, halve
from tests.runs import tiny_run

DATA = {"": {"tokenizer": "none", "tokens": 100, "content": "x", "windows": "folder"}}


def state_at(step, config, mesh):
    state = init_state(resolve(config, mesh))
    return state._replace(step=state.step + step)


@pytest.fixture
def saved(tmp_path, tokenizer):
    """A function that saves a run's states at steps 1, 2, ... with the given validation losses."""

    def save(*losses, **sections):
        config = tiny_run(output=tmp_path / "run", **sections)
        mesh = make_mesh(config.mesh)
        checkpoints = Checkpoints(config, tokenizer, DATA)
        for step, loss in enumerate(losses, 1):
            checkpoints.save(state_at(step, config, mesh), loss)
            checkpoints.finish(state_at(step, config, mesh))
        checkpoints.close()
        return config, mesh

    return save


def steps_of(config):
    return sorted(int(path.name) for path in find_checkpoint(config.output).parent.glob("[0-9]*"))


def test_newest_and_best_are_kept(saved):
    # Orbax's own best_fn + max_to_keep would keep steps 1 and 2 here, and resuming would jump back
    config, _ = saved(1.0, 2.0, 5.0, 6.0, checkpoint={"keep_latest": 2})
    assert steps_of(config) == [1, 3, 4]


def test_resumed_run_keeps_the_previous_best(saved, tokenizer):
    config, mesh = saved(1.0, 2.0, checkpoint={"keep_latest": 2})
    checkpoints = Checkpoints(config, tokenizer, DATA)
    for step, loss in ((3, 5.0), (4, None), (5, 6.0)):
        checkpoints.save(state_at(step, config, mesh), loss)
        checkpoints.finish(state_at(step, config, mesh))
    checkpoints.close()
    assert steps_of(config) == [1, 4, 5]


def test_nonfinite_loss_is_never_the_best(saved):
    config, _ = saved(float("nan"), 2.0, 3.0, checkpoint={"keep_latest": 1})
    assert steps_of(config) == [2, 3]


def test_newest_are_kept_without_validation(saved):
    config, _ = saved(None, None, None, checkpoint={"keep_latest": 1})
    assert steps_of(config) == [3]


@pytest.mark.parametrize("axes", [(1, 8, 1), (2, 2, 2), (8, 1, 1)])
def test_state_is_restored_bit_for_bit_on_any_mesh(saved, tokenizer, axes):
    config, mesh = saved(1.0)
    expected = state_at(1, config, mesh)
    other = tiny_run(output=config.output, mesh=MeshConfig(*axes))
    abstract = abstract_state(resolve(other, make_mesh(other.mesh)))
    restored = Checkpoints(other, tokenizer, DATA).restore(abstract)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), restored, expected)
    assert jax.tree.map(lambda x: x.sharding, restored) == jax.tree.map(lambda x: x.sharding, abstract)


def test_restoring_a_large_checkpoint_is_announced(saved, tokenizer, monkeypatch, caplog):
    config, mesh = saved(1.0)
    abstract = abstract_state(resolve(config, mesh))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state_at(1, config, mesh)))
    caplog.set_level("INFO", RUN_LOG)
    for least, announced in ((size, []), (size - 1, [f"restoring 0.0 GB from {config.output}/checkpoints/1"])):
        caplog.clear()
        monkeypatch.setattr(checkpoint, "ANNOUNCED_BYTES", least)
        with closing(Checkpoints(config, tokenizer, DATA)) as checkpoints:
            checkpoints.restore(abstract)
        assert [line for line in caplog.messages if line.startswith("restoring")] == announced


def test_single_checkpoint_can_be_moved_and_loaded(saved, tmp_path, tokenizer):
    config, mesh = saved(1.0, 2.0)
    moved = tmp_path / "elsewhere"
    shutil.move(find_checkpoint(config.output), moved)
    shutil.rmtree(config.output)
    run = load_run(find_checkpoint(moved))
    assert run.model == config.model and run.tokenizer.fingerprint == tokenizer.fingerprint
    abstract, read = abstract_state(resolve(config, mesh)).params, []
    params = load_params(CheckpointWeights(moved), abstract, read.append)
    assert sum(read) == local_bytes(abstract)
    np.testing.assert_array_equal(params["head"], init_state(resolve(config, mesh)).params["head"])


def test_saved_state_is_unaffected_by_later_updates(tmp_path, tokenizer):
    # saving is asynchronous, and the next step reuses the state's memory
    config = tiny_run(output=tmp_path / "run", model={"n_embd": 256}, mesh=MeshConfig(1, 1, 1))
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    checkpoints = Checkpoints(config, tokenizer, DATA)
    state = init_state(resolve(config, mesh))
    expected = jax.tree.map(np.array, state.params)
    overwrite = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    checkpoints.save(state, None)
    for _ in range(5):
        state = overwrite(state)
    checkpoints.finish(state)
    checkpoints.close()
    restored = checkpoints.restore(abstract_state(resolve(config, mesh))).params
    jax.tree.map(np.testing.assert_array_equal, restored, expected)


def test_checkpoint_without_its_last_file_is_ignored(saved):
    config, _ = saved(1.0, 2.0)
    (find_checkpoint(config.output) / "_CHECKPOINT_METADATA").unlink()
    assert find_checkpoint(config.output).name == "1"


def files_of(folder):
    return sorted((p for p in Path(folder).rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(checkpoint, "PAUSES", (0, 0, 0))


@pytest.mark.parametrize("item", ["params", "optimizer", "run"])
@pytest.mark.parametrize("harm", [halve, flip_a_bit, Path.unlink])
def test_damaged_checkpoint_is_set_aside_and_the_previous_one_used(saved, tokenizer, caplog, item, harm):
    config, mesh = saved(1.0, 2.0)
    for file in files_of(find_checkpoint(config.output) / item)[-3:]:  # several, since one alone might not be read
        harm(file)
    restored = Checkpoints(config, tokenizer, DATA).restore(abstract_state(resolve(config, mesh)))
    if harm is flip_a_bit and item == "run" and restored.step == 2:
        return  # the damage is in the tokenizer's files or the config, and the state is intact
    assert restored.step == 1
    assert "checkpoints/2" in caplog.text
    assert [path.name.split("-")[0] for path in (Path(config.output) / "damaged").iterdir()] == ["2"]
    assert steps_of(config) == [1]


FAULTS = [ConnectionError("reset by peer"), TimeoutError("timed out"), PermissionError(13, "Permission denied")]
FAULTS += [MemoryError(), ValueError("UNAVAILABLE: CURL error"), RuntimeError("in a library")]


@pytest.mark.parametrize("fault", FAULTS, ids=repr)
@pytest.mark.parametrize("times", [2, 100])
def test_other_read_errors_are_retried_then_end_the_run_without_moving_anything(
    saved, tokenizer, monkeypatch, fault, times
):
    config, mesh = saved(1.0, 2.0)
    restore, calls = ocp.StandardCheckpointHandler.restore, []

    def failing(self, *args, **kwargs):
        calls.append(args)
        if len(calls) <= times:
            raise fault
        return restore(self, *args, **kwargs)

    monkeypatch.setattr(ocp.StandardCheckpointHandler, "restore", failing)
    checkpoints = Checkpoints(config, tokenizer, DATA)
    if times == 2:
        assert checkpoints.restore(abstract_state(resolve(config, mesh))).step == 2
    else:
        with pytest.raises(UserError, match=rf"can't be read \({type(fault).__name__}") as raised:
            checkpoints.restore(abstract_state(resolve(config, mesh)))
        assert str(fault) in str(raised.value) and len(calls) == 4
    assert steps_of(config) == [1, 2] and not (Path(config.output) / "damaged").exists()


@pytest.mark.parametrize("harm", [halve, flip_a_bit, Path.unlink])
def test_unconfirmed_damage_moves_nothing(saved, tokenizer, monkeypatch, harm):
    config, mesh = saved(1.0, 2.0)
    files = files_of(find_checkpoint(config.output) / "params")[-3:]
    whole = [file.read_bytes() for file in files]
    monkeypatch.setattr(checkpoint.time, "sleep", lambda _: [f.write_bytes(b) for f, b in zip(files, whole)])
    for file in files:
        harm(file)
    assert Checkpoints(config, tokenizer, DATA).restore(abstract_state(resolve(config, mesh))).step == 2
    assert steps_of(config) == [1, 2] and not (Path(config.output) / "damaged").exists()


def test_state_that_differs_from_what_was_saved_counts_as_damage(saved, tokenizer, caplog):
    config, mesh = saved(1.0, 2.0)
    change_a_value(find_checkpoint(config.output) / "params", "blocks.query")  # the files on disk are still well-formed
    assert Checkpoints(config, tokenizer, DATA).restore(abstract_state(resolve(config, mesh))).step == 1
    assert "params.blocks.query differs from what was saved" in caplog.text


def test_checkpoint_without_fingerprints_is_restored_with_a_warning(saved, tokenizer, caplog):
    config, mesh = saved(1.0)
    forget_fingerprints(find_checkpoint(config.output))
    assert Checkpoints(config, tokenizer, DATA).restore(abstract_state(resolve(config, mesh))).step == 1
    assert caplog.text.count("its content is not verified") == 1


def test_the_only_checkpoint_is_never_set_aside(saved, tokenizer):
    config, mesh = saved(1.0)
    halve(files_of(find_checkpoint(config.output) / "params")[-1])
    with pytest.raises(UserError, match=r"checkpoints/1/params: damaged checkpoint"):
        Checkpoints(config, tokenizer, DATA).restore(abstract_state(resolve(config, mesh)))
    assert steps_of(config) == [1]


def test_fingerprint_detects_changed_bits_and_reordered_elements(saved):
    config = tiny_run()
    mesh = make_mesh(config.mesh)
    state = init_state(resolve(config, mesh))
    of = lambda change: fingerprints({"head": change(state.params["head"])})["head"]
    prints = {
        of(lambda x: x),
        of(lambda x: x.at[3, 5].set(-x[3, 5])),
        of(lambda x: x.at[3, 5].set(np.nextafter(x[3, 5], np.float32(1)))),
        of(lambda x: x.at[:2].set(x[1::-1])),
        of(lambda x: x.at[:, :2].set(x[:, 1::-1])),
    }
    assert len(prints) == 5
    assert fingerprints(jax.tree.map(np.asarray, state)) == fingerprints(state)


def test_resume_never_refuses_a_folder_with_checkpoints(saved, tokenizer):
    config, _ = saved(1.0)
    with pytest.raises(UserError, match=r"resume: never, but .* already has checkpoints"):
        Checkpoints(tiny_run(output=config.output, resume="never"), tokenizer, DATA)


def test_error_names_a_damaged_record(saved):
    config, _ = saved(1.0)
    record = find_checkpoint(config.output) / "run" / "metadata"
    record.write_text(record.read_text()[:100])
    with pytest.raises(UserError, match=r"checkpoints/1: damaged"):
        load_run(find_checkpoint(config.output))


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"model": {"n_layer": 3}}, "model.n_layer is 2 there, 3 here"),
        ({"seed": 1}, "seed is 0 there, 1 here"),
        ({"optimizer": {"learning_rate": 0.5}}, "optimizer.learning_rate"),
        ({"training": {"batch_size": 32}}, "training.batch_size"),
    ],
)
def test_output_folder_of_another_run_is_refused_and_unchanged(saved, tokenizer, changes, name):
    config, _ = saved(1.0)
    before = json.loads((find_checkpoint(config.output).parents[1] / "run.json").read_text())
    with pytest.raises(UserError, match=name):
        Checkpoints(tiny_run(output=config.output, **changes), tokenizer, DATA)
    assert json.loads((find_checkpoint(config.output).parents[1] / "run.json").read_text()) == before
    assert steps_of(config) == [1]


def test_run_with_different_data_is_refused(saved, tokenizer):
    config, _ = saved(1.0)
    for change in ({"tokens": 101}, {"tokenizer": "other"}, {"content": "y"}):
        with pytest.raises(
            UserError, match=r"data.train: not the token files .* tokens of tokenizer \w+ now, 100 of none"
        ):
            Checkpoints(config, tokenizer, {"": DATA[""] | change})
    with pytest.raises(UserError, match=r'per file, but .* per folder; set "windows": "folder" in manifest.json'):
        Checkpoints(config, tokenizer, {"": DATA[""] | {"windows": "file"}})


def test_tokenizer_hashes_of_older_versions_are_not_compared(saved, tokenizer):
    config, _ = saved(1.0)
    record = find_checkpoint(config.output).parents[1] / "run.json"
    record.write_text(record.read_text().replace('"tokenizer": "none"', '"tokenizer": "bpe-0123456789abcdef"'))
    Checkpoints(config, tokenizer, {"": DATA[""] | {"tokenizer": "0123456789abcdef"}})
    with pytest.raises(UserError, match=r"data.train: not the token files"):
        Checkpoints(config, tokenizer, {"": DATA[""] | {"content": "y"}})


def test_folder_that_is_not_a_run_is_refused(tmp_path, tokenizer):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="does not contain a codegen-jax run"):
        Checkpoints(tiny_run(output=tmp_path), tokenizer, DATA)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["thesis.txt"]
