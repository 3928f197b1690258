"""Two real processes resume a run, and one of them fails to read the newest checkpoint."""

import shutil
from pathlib import Path

import pytest

from codegen_jax.config import MeshConfig
from codegen_jax.training.loop import train
from codegen_jax.training.metrics import read_metrics
from codegen_jax.weights.run_folder import complete_checkpoints
from tests.harm import change_a_value, halve
from tests.processes import finish, start
from tests.runs import tiny_run

# in process 1, successive reads of arrays fail with these errors, then succeed
FAILING = """
import sys
import orbax.checkpoint as ocp
from codegen_jax.training import checkpoint
checkpoint.PAUSES = (0.1, 0.1, 0.1)
restore, errors = ocp.StandardCheckpointHandler.restore, {errors}
def failing(*args, **kwargs):
    if sys.argv[-1] == "1" and errors:
        raise errors.pop(0)
    return restore(*args, **kwargs)
ocp.StandardCheckpointHandler.restore = failing
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory, token_folder):
    """A run of six steps with a checkpoint at every step."""
    config = run(tmp_path_factory.mktemp("whole") / "run", token_folder)
    train(config)
    return config


@pytest.fixture
def half_done(tmp_path, token_folder, whole):
    """The same run after its fifth step, to be resumed by two processes."""
    shutil.copytree(whole.output, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/6")
    return run(tmp_path / "run", token_folder, mesh=MeshConfig(1, 2, 1))


def run(output, tokens, **sections):
    return tiny_run(output, tokens, checkpoint={"save_every": 1, "keep_latest": 9}, **sections)


def resume(config, tmp_path, errors="[]"):
    return finish(start(config, tmp_path / "a.yaml", count=2, devices=1, first=FAILING.format(errors=errors)))


def steps_of(config):
    return [int(path.name) for path in complete_checkpoints(config.output)]


def losses(config):
    return [line["loss"] for line in read_metrics(config.output) if "loss" in line]


def test_transient_read_errors_lose_nothing(half_done, whole, tmp_path):
    errors = "[ConnectionError('reset by peer'), TimeoutError('timed out'), PermissionError(13, 'Permission denied')]"
    (code, error), _ = resume(half_done, tmp_path, errors)
    assert code == 0, error
    for text in ("(ConnectionError: reset by peer)", "(TimeoutError: timed out)", "Permission denied)"):
        assert error.count(text) == 1
    assert error.count("can't be read (") == error.count("retrying in 0.1 s") == 3
    assert steps_of(half_done) == [1, 2, 3, 4, 5, 6] and losses(half_done) == pytest.approx(losses(whole), rel=1e-5)


def test_persistent_read_errors_end_both_processes_with_the_last_error(half_done, tmp_path):
    errors = "[ValueError('UNAVAILABLE: no route'), RuntimeError('in a library'), OSError(116, 'Stale file handle'), "
    for code, error in resume(half_done, tmp_path, errors + "MemoryError('out of it')]"):
        assert code == 2 and "Traceback" not in error
        assert "can't be read (MemoryError: out of it); it may be intact, try again\n" in error
    assert steps_of(half_done) == [1, 2, 3, 4, 5] and not Path(half_done.output, "damaged").exists()


def test_damaged_checkpoints_are_set_aside_for_both_processes(half_done, whole, tmp_path):
    checkpoints = [Path(path) for path in complete_checkpoints(half_done.output)]
    for harm, checkpoint in ((halve, checkpoints[-1]), (Path.unlink, checkpoints[-2])):
        for file in (checkpoint / "params").rglob("*"):
            if file.is_file() and file.parent.name == "d":
                harm(file)
    change_a_value(checkpoints[-3] / "params", "head")
    halve(checkpoints[-4] / "optimizer/_METADATA")
    (code, error), _ = resume(half_done, tmp_path)
    assert code == 0, error
    assert error.count("; moving it to ") == 4 and "params.head differs from what was saved" in error
    assert steps_of(half_done) == [1, 2, 3, 4, 5, 6] and losses(half_done) == pytest.approx(losses(whole), rel=1e-5)
    assert len(list(Path(half_done.output, "damaged").iterdir())) == 4
