"""Ownership of output folders, tested with real processes that are stopped in every way."""

import signal
import subprocess
import sys

import pytest
import yaml
from etils import epath

from codegen_jax.config import MeshConfig
from codegen_jax.errors import UserError
from codegen_jax.training.checkpoint import Checkpoints
from codegen_jax.training.claim import claim, is_finished
from codegen_jax.training.loop import train
from codegen_jax.weights.run_folder import find_checkpoint
from tests.processes import finish, start, wait_for, wait_until
from tests.runs import tiny_run

ONE = MeshConfig(1, 1, 1)
DATA = {"": {"tokenizer": "none", "tokens": 100, "content": "x", "windows": "folder"}}


def test_one_run_at_a_time_holds_a_folder_until_it_ends_however_it_ends(tmp_path, token_folder):
    config = tiny_run(tmp_path / "run", token_folder, mesh=ONE, training={"steps": 100_000, "eval_every": 100_000})
    first, second, third = (lambda: start(config, tmp_path / "a.yaml", devices=1, pause=0.05)[0] for _ in range(3))
    holder = first()
    wait_for(holder, "step      1  loss")
    ((code, error),) = finish([second()])
    assert code == 2 and f"is in use by another run (process {holder.pid} on " in error and "Traceback" not in error
    holder.kill()
    holder.communicate()
    going_on = third()  # the lock was released when its process died
    wait_for(going_on, "first step done")
    going_on.send_signal(signal.SIGINT)
    ((code, error),) = finish([going_on])
    step = int(find_checkpoint(config.output).name)
    assert code == 130 and error.endswith(
        f"codegen-jax: stopped: interrupted: saved after step {step}; the same command resumes from there\n"
    )
    assert f"- outcome: interrupted: saved after step {step}" in (tmp_path / "run/summary.md").read_text()


def test_a_run_that_was_stopped_before_its_first_step_does_not_hold_its_folder(tmp_path, token_folder):
    config = tiny_run(tmp_path / "run", token_folder, mesh=ONE)
    (process,) = start(config, tmp_path / "a.yaml", devices=1, first="import jax, time\njax.stages.Lowered.compile = "
                       "lambda *_, **__: time.sleep(60)\n")  # fmt: skip
    wait_until(lambda: (tmp_path / "run/metrics.jsonl").exists())
    process.send_signal(signal.SIGINT)
    ((code, error),) = finish([process])
    assert (code, error) == (130, "codegen-jax: error: interrupted\n")
    other = tiny_run(tmp_path / "run", token_folder, mesh=ONE, seed=1)
    assert claim(epath.Path(config.output), {"config": other.to_dict(), "data": {}})


def test_a_finished_run_says_so_without_starting_jax(tmp_path, token_folder):
    config = tiny_run(tmp_path / "run", token_folder, mesh=MeshConfig(1, 8, 1))
    train(config)
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(config.to_dict()))
    program = "import sys\nfrom codegen_jax.cli import main\nmain(sys.argv[1:])\nassert 'jax' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", program, "train", str(tmp_path / "a.yaml")], capture_output=True, text=True
    )
    said = f"{config.output}: all 6 steps are done; raise training.steps to go on\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, said, "")
    assert is_finished(config)
    assert not is_finished(tiny_run(config.output, token_folder, training={"steps": 7}))
    assert not is_finished(tiny_run(config.output, token_folder, seed=1))  # the folder belongs to another run
    assert not is_finished(tiny_run(config.output, token_folder, resume="never"))


def test_a_folder_is_free_again_when_a_run_is_closed(tmp_path, tokenizer):
    config = tiny_run(tmp_path / "run")
    checkpoints = Checkpoints(config, tokenizer, DATA)
    probe = (
        "import fcntl, sys\nfile = open(sys.argv[1], 'a+')\n"
        "try:\n    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)\nexcept OSError:\n    print('held')\n"
    )
    held = lambda: subprocess.run([sys.executable, "-c", probe, tmp_path / "run/lock"], capture_output=True).stdout
    assert held() == b"held\n"
    checkpoints.close()
    assert held() == b""


def test_a_folder_in_use_is_refused_before_the_weights_to_start_from_are_looked_at(tmp_path, token_folder):
    holder = (
        "import fcntl, sys, time\nfile = open(sys.argv[1], 'a+')\nfcntl.lockf(file, fcntl.LOCK_EX)\n"
        "print('held', flush=True)\ntime.sleep(600)\n"
    )
    config = tiny_run(tmp_path / "run", token_folder, mesh=MeshConfig(1, 8, 1), init_from=str(tmp_path / "none"))
    (tmp_path / "run").mkdir()
    lock = tmp_path / "run/lock"
    lock.write_text("process 7 on a\n")
    process = subprocess.Popen([sys.executable, "-c", holder, lock], stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match=r"^output: .* is in use by another run \(process 7 on a\)"):
            train(config)
    finally:
        process.kill()
        process.communicate()
    with pytest.raises(UserError, match=r"none: no such file"):
        train(config)
    assert lock.read_text() == "process 7 on a\n" and [path.name for path in lock.parent.iterdir()] == ["lock"]


@pytest.mark.parametrize("record", ["", "{", "[]", "{}"])
def test_a_record_that_is_none_is_named(tmp_path, record):
    (tmp_path / "run.json").write_text(record)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(UserError, match=r"run\.json is damaged .*; choose another folder"):
        claim(epath.Path(tmp_path), {"config": tiny_run().to_dict(), "data": {}})
