"""Two real processes that resume a run whose newest checkpoint can't be read in one of them."""

from pathlib import Path

import pytest

from codegen_jax.config import MeshConfig
from codegen_jax.training.loop import train
from codegen_jax.training.metrics import read_metrics
from codegen_jax.weights.run_folder import whole_checkpoints
from tests.harm import halve
from tests.processes import finish, start
from tests.runs import tiny_run

TWO = MeshConfig(1, 2, 1)

# in process 1 the first reads of an item of arrays fail with an error
FAILING = """
import sys
import orbax.checkpoint as ocp
from codegen_jax.training import checkpoint
checkpoint.PAUSES = (0.1, 0.1, 0.1)
restore, left = ocp.StandardCheckpointHandler.restore, [{times}]
def failing(*args, **kwargs):
    if sys.argv[-1] == "1" and left[0]:
        left[0] -= 1
        raise {error}
    return restore(*args, **kwargs)
ocp.StandardCheckpointHandler.restore = failing
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory, token_folder):
    """A run of four steps with checkpoints after two and after four."""
    config = tiny_run(tmp_path_factory.mktemp("whole") / "run", token_folder, training={"steps": 4})
    train(config)
    return config


@pytest.fixture
def half_done(tmp_path, token_folder):
    """The same with three steps done, saved after two and after three."""
    config = tiny_run(tmp_path / "run", token_folder, training={"steps": 3})
    train(config)
    return tiny_run(tmp_path / "run", token_folder, training={"steps": 4}, mesh=TWO)


def resume(config, tmp_path, first):
    return finish(start(config, tmp_path / "a.yaml", count=2, devices=1, first=first))


def steps_of(config):
    return [int(path.name) for path in whole_checkpoints(config.output)]


def losses(config):
    return [line["loss"] for line in read_metrics(config.output) if "loss" in line]


def test_a_fault_that_passes_costs_nothing(half_done, whole, tmp_path):
    first = FAILING.format(times=2, error="ConnectionError('reset by peer')")
    (code, error), _ = resume(half_done, tmp_path, first)
    assert code == 0, error
    assert "can't be read (ConnectionError: reset by peer)" in error and "reading again in 0.1 s" in error
    assert steps_of(half_done) == [3, 4] and losses(half_done) == pytest.approx(losses(whole), rel=1e-5)


def test_a_fault_that_stays_ends_both_with_its_text_and_moves_nothing(half_done, tmp_path):
    first = FAILING.format(times=99, error="MemoryError('out of it')")
    for code, error in resume(half_done, tmp_path, first):
        assert code == 2 and "can't be read (MemoryError: out of it)" in error and "Traceback" not in error
    assert steps_of(half_done) == [2, 3]


def test_damage_that_one_process_sees_sets_aside_for_both(half_done, whole, tmp_path):
    for file in Path(whole_checkpoints(half_done.output)[-1], "params").rglob("*"):
        if file.is_file() and file.parent.name == "d":
            halve(file)
    (code, error), _ = resume(half_done, tmp_path, FAILING.format(times=0, error="None"))
    assert code == 0, error
    assert error.count("is moved to") == 1
    assert steps_of(half_done) == [2, 4] and losses(half_done) == pytest.approx(losses(whole), rel=1e-5)
