"""Multi-process and interrupted runs: losses do not change, and each failure gives one message."""

import random
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from codegen_jax.config import MeshConfig
from codegen_jax.errors import PREEMPTED
from codegen_jax.training.loop import train
from codegen_jax.training.metrics import read_lines, read_metrics
from codegen_jax.weights.run_folder import complete_checkpoints, find_checkpoint
from tests.processes import finish, start, wait_for, wait_until
from tests.runs import tiny_run

FEW = MeshConfig(2, 2, 1)
SAMPLES = {"sample_prompts": ["def f(x):"], "sample_tokens": 4}


def run(output, tokens, **sections):
    return tiny_run(output, tokens, data={"validation": str(tokens)}, **sections)


def losses(output):
    return {line["step"]: line["loss"] for line in read_metrics(output) if "loss" in line}


def validation(output):
    return {line["step"]: line["validation_loss"] for line in read_metrics(output) if "validation_loss" in line}


def new_checkpoints(config, known):
    return set(complete_checkpoints(config.output)) - set(known)


def saving(output):
    return any(Path(output).glob("checkpoints/*.orbax-checkpoint-tmp*"))


def assert_close(actual, expected):
    assert list(actual) == list(expected)
    np.testing.assert_allclose(list(actual.values()), list(expected.values()), rtol=1e-5)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, token_folder):
    """The output of an uninterrupted single-process run."""
    output = tmp_path_factory.mktemp("alone") / "run"
    train(run(output, token_folder, training=SAMPLES))
    return output


@pytest.mark.parametrize(
    ("count", "mesh"),
    [(2, MeshConfig(2, 2, 2)), pytest.param(4, MeshConfig(1, 8, 1), marks=pytest.mark.slow)],
)
def test_losses_do_not_depend_on_the_number_of_processes_even_on_resume(tmp_path, token_folder, alone, count, mesh):
    output = tmp_path / "run"
    first = run(output, token_folder, mesh=mesh, training=SAMPLES | {"steps": 3})
    processes = start(first, tmp_path / "a.yaml", count=count, devices=8 // count)
    assert [code for code, _ in finish(processes)] == [0] * count
    assert list(losses(output)) == [1, 2, 3]
    # 4 devices in 4 / count processes resume from what 8 devices wrote
    second = run(output, token_folder, mesh=FEW, training=SAMPLES)
    (code, error), *others = finish(start(second, tmp_path / "b.yaml", count=4 // count, devices=count))
    assert code == 0, error
    assert [code for code, _ in others] == [0] * len(others)
    assert_close(losses(output), losses(alone))
    assert_close(validation(output), validation(alone))
    assert read_lines(output / "samples.jsonl") == read_lines(alone / "samples.jsonl")


def test_each_process_reads_only_the_bytes_of_its_own_devices(tmp_path, token_folder):
    model = {"n_embd": 256, "n_head": 8}
    output = tmp_path / "run"
    assert finish(start(run(output, token_folder, model=model, training={"steps": 1}), tmp_path / "a.yaml"))[0][0] == 0
    stored = sum(file.stat().st_size for file in (output / "checkpoints/1").rglob("*") if file.is_file())
    again = run(output, token_folder, model=model, training={"steps": 2}, mesh=MeshConfig(1, 2, 1))
    for process in start(again, tmp_path / "b.yaml", count=2, devices=1):
        read = int(process.communicate(timeout=120)[0].rpartition("bytes read: ")[2])
        assert 0.4 * stored < read < 0.6 * stored


def test_error_in_one_process_ends_all_with_its_message(tmp_path, token_folder):
    config = run(tmp_path / "run", token_folder, mesh=FEW)
    began = time.monotonic()
    (code_0, error_0), (code_1, error_1) = finish(
        start(config, tmp_path / "a.yaml", count=2, devices=2, fails_at=[0, 3])
    )
    assert time.monotonic() - began < 60
    assert code_0 == code_1 == 1
    assert "codegen-jax: error: process 1: " in error_0 and "this host lost its disk" in error_0
    assert "Traceback" in error_1 and "Traceback" not in error_0


def test_killed_process_ends_the_others_with_a_message_that_names_it(tmp_path, token_folder):
    config = run(tmp_path / "run", token_folder, mesh=FEW, training={"steps": 100_000})
    short_timeout = "from codegen_jax import distributed\ndistributed.LOST_AFTER_SECONDS = 4\n"
    processes = start(config, tmp_path / "a.yaml", count=2, devices=2, first=short_timeout)
    wait_for(processes[0], "step      2  loss")
    processes[1].kill()
    (code, error), _ = finish(processes, timeout=60)
    (line,) = error.splitlines()
    assert code == 1 and line.startswith("codegen-jax: error: process 1 is lost: no heartbeat for 4 s")


def test_missing_process_at_startup_is_reported_with_the_coordinator(tmp_path, token_folder):
    config = run(tmp_path / "run", token_folder, mesh=FEW, distributed={"timeout": 2})
    waiting, absent = start(config, tmp_path / "a.yaml", count=2, devices=2)
    absent.kill()
    absent.communicate()
    ((code, error),) = finish([waiting])
    assert code == 2 and "distributed.coordinator: 127.0.0.1:" in error and "Traceback" not in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("count", [1, 2])
def test_sigterm_saves_and_the_same_command_resumes(tmp_path, token_folder, alone, count):
    config = run(tmp_path / "run", token_folder, checkpoint={"save_every": 100})
    processes = start(config, tmp_path / "a.yaml", count=count, devices=8 // count, pause=0.7)
    wait_for(processes[0], "step      1  loss")
    processes[-1].send_signal(signal.SIGTERM)  # only one host gets the signal
    for code, error in finish(processes):
        assert code == PREEMPTED, error
        assert "codegen-jax: stopped: SIGTERM: saved after step" in error
    assert 1 <= int(find_checkpoint(tmp_path / "run").name) < 6
    assert [code for code, _ in finish(start(config, tmp_path / "a.yaml", count=count, devices=8 // count))] == [
        0
    ] * count
    assert_close(losses(tmp_path / "run"), losses(alone))


@pytest.mark.slow
def test_run_killed_at_20_random_times_has_the_losses_of_an_uninterrupted_one(tmp_path, token_folder):
    sections = {"training": {"steps": 80, "eval_every": 100}, "checkpoint": {"save_every": 1}, "mesh": FEW}
    whole, killed = (run(tmp_path / name, token_folder, **sections) for name in ("whole", "killed"))
    assert finish(start(whole, tmp_path / "whole.yaml", devices=4))[0][0] == 0
    rng = random.Random(0)
    killed_during_save = 0
    for number in range(20):
        done = complete_checkpoints(killed.output)
        (process,) = start(killed, tmp_path / "killed.yaml", devices=4, pause=0.1)
        wait_for(process, "first step done")
        steps = rng.randrange(3)
        wait_until(lambda done=done, steps=steps: len(new_checkpoints(killed, done)) >= steps)
        if number % 2:  # kill it during a save, regardless of the machine's speed
            wait_until(lambda: saving(killed.output))
        time.sleep(rng.uniform(0, 0.02 if number % 2 else 0.4))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        remaining = complete_checkpoints(killed.output)
        assert not done or int(remaining[-1].name) >= int(done[-1].name)
        killed_during_save += saving(killed.output)
    assert killed_during_save > 3
    ((code, error),) = finish(start(killed, tmp_path / "killed.yaml", devices=4))
    assert code == 0, error
    assert losses(killed.output) == losses(whole.output)


@pytest.mark.slow
def test_failed_saves_are_retried_then_reported_and_training_continues(tmp_path, token_folder, monkeypatch):
    # otherwise JAX's compilation cache would warn that its writes were refused, too
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1000")
    sections = {"training": {"steps": 16, "eval_every": 100}, "checkpoint": {"save_every": 6}, "mesh": FEW}
    whole, refused = (run(tmp_path / name, token_folder, **sections) for name in ("whole", "refused"))
    assert finish(start(whole, tmp_path / "whole.yaml", devices=4))[0][0] == 0
    # the save at step 6 and its retries at 7, 8 and 9 fail; so does the save at 12, but not its first retry
    (process,) = start(refused, tmp_path / "refused.yaml", devices=4, pause=0.3, refused="3-12")
    output, error = process.communicate(timeout=120)
    assert (process.returncode, error) == (0, "")
    refusals = re.findall(r"^a checkpoint could not be written: (.*)$", output, re.M)
    assert len(refusals) >= 5
    assert all("File too large" in line for line in refusals), refusals
    assert output.count("training continues without it") == 1
    assert [int(path.name) for path in complete_checkpoints(refused.output)] in ([13, 16], [14, 16])
    assert losses(refused.output) == losses(whole.output)
    # if nothing at all can be written, the run fails and keeps its earlier files
    longer = run(refused.output, token_folder, **sections | {"training": {"steps": 18, "eval_every": 100}})
    ((code, error),) = finish(start(longer, tmp_path / "refused.yaml", devices=4, refused="1-99"))
    *warnings, line = error.splitlines()  # the warnings are for records, which could not be written either
    assert code == 2 and line.startswith("codegen-jax: error: ") and "the last checkpoint could not be written" in line
    assert all(line.startswith("codegen-jax: warning: ") for line in warnings)
    assert [int(path.name) for path in complete_checkpoints(refused.output)][-1] == 16
