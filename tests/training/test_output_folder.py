"""Output folders after a failure: errors name damaged records, and unfinished files are removed."""

import resource
from pathlib import Path

import pytest

from codegen_jax.errors import UserError
from codegen_jax.sharding import make_mesh
from codegen_jax.training import checkpoint
from codegen_jax.training.checkpoint import Checkpoints
from codegen_jax.training.resolve import resolve
from codegen_jax.training.step import init_state
from codegen_jax.weights import checkpoint_format
from codegen_jax.weights.checkpoint_format import unreadable
from tests.processes import wait_until
from tests.runs import tiny_run

DATA = {"": {"tokenizer": "none", "tokens": 100, "content": "x", "windows": "folder"}}


@pytest.fixture
def config(tmp_path):
    return tiny_run(output=tmp_path / "run")


@pytest.fixture
def state(config):
    """A function that returns the run's state at a step."""
    state = init_state(resolve(config, make_mesh(config.mesh)))
    return lambda step: state._replace(step=state.step + step)


@pytest.fixture
def checkpoints(config, tokenizer):
    checkpoints = Checkpoints(config, tokenizer, DATA)
    yield checkpoints
    checkpoints.close()


def names(config):
    return sorted(path.name for path in (Path(config.output) / "checkpoints").iterdir())


@pytest.mark.parametrize("kept", [0, 1, 0.5])
def test_error_names_a_damaged_record_and_nothing_is_written(config, checkpoints, state, tokenizer, kept):
    checkpoints.save(state(1), None)
    checkpoints.finish(state(1))
    checkpoints.close()
    record = Path(config.output) / "run.json"
    content = record.read_text()
    record.write_text(content[: int(len(content) * kept) if kept == 0.5 else kept])
    files = lambda: {path: path.read_bytes() for path in Path(config.output).rglob("*") if path.is_file()}
    before = files()
    with pytest.raises(UserError, match=r"^output: \S+/run\.json is damaged \(.*\); choose another folder$"):
        Checkpoints(config, tokenizer, DATA)
    assert files() == before


def test_a_retry_reads_the_whole_checkpoint_again(config, checkpoints, state, monkeypatch):
    checkpoints.generation_config = expected = {"generation_config.json": {"temperature": 0.5}}
    checkpoints.save(state(1), None)
    checkpoints.finish(state(1))
    checkpoints.generation_config = {}
    reads, failures = [], [OSError("the network is down"), None]

    def load_run(path):
        reads.append(path)
        if failure := failures.pop(0):
            raise unreadable(path, failure)
        return checkpoint_format.load_run(path)

    monkeypatch.setattr(checkpoint, "PAUSES", (0,))
    monkeypatch.setattr(checkpoint, "load_run", load_run)
    assert int(checkpoints.restore(state(0)).step) == 1
    assert checkpoints.generation_config == expected and len(reads) == 2


def test_unfinished_save_is_removed_on_resume(config, checkpoints, state, tokenizer):
    checkpoints.save(state(1), None)
    checkpoints.finish(state(1))
    checkpoints.close()
    (Path(config.output) / "checkpoints/2.orbax-checkpoint-tmp/params").mkdir(parents=True)
    (Path(config.output) / "checkpoints/2.orbax-checkpoint-tmp/params/d").write_text("half")
    resumed = Checkpoints(config, tokenizer, DATA)
    wait_until(lambda: names(config) == ["1"])
    resumed.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax's threads, when writes fail
def test_failed_save_is_removed_before_the_next_retry(config, checkpoints, state):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # simulates a full disk
    try:
        checkpoints.save(state(1), None)
        wait_until(lambda: not checkpoints.manager.is_saving_in_progress())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    checkpoints.check(state(2))
    checkpoints.finish(state(2))
    assert names(config) == ["2"]
