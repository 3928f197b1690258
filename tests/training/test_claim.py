"""Ownership of output folders, tested with real processes that end in different ways."""

import json
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


def test_folder_is_locked_by_one_run_until_its_process_ends(tmp_path, token_folder):
    config = tiny_run(tmp_path / "run", token_folder, mesh=ONE, training={"steps": 100_000, "eval_every": 100_000})
    first, second, third = (lambda: start(config, tmp_path / "a.yaml", devices=1, pause=0.05)[0] for _ in range(3))
    holder = first()
    wait_for(holder, "step      1  loss")
    ((code, error),) = finish([second()])
    assert code == 2 and f"is in use by another run (process {holder.pid} on " in error and "Traceback" not in error
    holder.kill()
    holder.communicate()
    resumed = third()  # the lock was released when its process died
    wait_for(resumed, "first step done")
    resumed.send_signal(signal.SIGINT)
    ((code, error),) = finish([resumed])
    step = int(find_checkpoint(config.output).name)
    assert code == 130 and error.endswith(
        f"codegen-jax: stopped: interrupted: saved after step {step}; the same command resumes from there\n"
    )
    assert f"- outcome: interrupted: saved after step {step}" in (tmp_path / "run/summary.md").read_text()


def test_run_stopped_before_its_first_step_does_not_own_its_folder(tmp_path, token_folder):
    config = tiny_run(tmp_path / "run", token_folder, mesh=ONE)
    (process,) = start(config, tmp_path / "a.yaml", devices=1, first="import jax, time\njax.stages.Lowered.compile = "
                       "lambda *_, **__: time.sleep(60)\n")  # fmt: skip
    wait_until(lambda: (tmp_path / "run/metrics.jsonl").exists())
    process.send_signal(signal.SIGINT)
    ((code, error),) = finish([process])
    assert (code, error) == (130, "codegen-jax: error: interrupted\n")
    other = tiny_run(tmp_path / "run", token_folder, mesh=ONE, seed=1)
    assert claim(epath.Path(config.output), {"config": other.to_dict(), "data": {}})


def test_finished_run_is_reported_without_importing_jax(tmp_path, token_folder):
    config = tiny_run(tmp_path / "run", token_folder, mesh=MeshConfig(1, 8, 1))
    train(config)
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(config.to_dict()))
    program = "import sys\nfrom codegen_jax.cli import main\nmain(sys.argv[1:])\nassert 'jax' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", program, "train", str(tmp_path / "a.yaml")], capture_output=True, text=True
    )
    message = f"{config.output}: all 6 steps are done; raise training.steps to continue\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, message, "")
    assert is_finished(config)
    assert not is_finished(tiny_run(config.output, token_folder, training={"steps": 7}))
    assert not is_finished(tiny_run(config.output, token_folder, seed=1))  # the folder belongs to another run
    assert not is_finished(tiny_run(config.output, token_folder, resume="never"))


def test_closing_a_run_releases_its_folder(tmp_path, tokenizer):
    config = tiny_run(tmp_path / "run")
    checkpoints = Checkpoints(config, tokenizer, DATA)
    probe = (
        "import fcntl, sys\nfile = open(sys.argv[1], 'a+')\n"
        "try:\n    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)\nexcept OSError:\n    print('locked')\n"
    )
    command = [sys.executable, "-c", probe, tmp_path / "run/lock"]
    lock_state = lambda: subprocess.run(command, capture_output=True).stdout
    assert lock_state() == b"locked\n"
    checkpoints.close()
    assert lock_state() == b""


def test_folder_in_use_is_refused_before_initial_weights_are_opened(tmp_path, token_folder):
    holder = (
        "import fcntl, sys, time\nfile = open(sys.argv[1], 'a+')\nfcntl.lockf(file, fcntl.LOCK_EX)\n"
        "print('locked', flush=True)\ntime.sleep(600)\n"
    )
    config = tiny_run(tmp_path / "run", token_folder, mesh=MeshConfig(1, 8, 1), init_from=str(tmp_path / "none"))
    (tmp_path / "run").mkdir()
    lock = tmp_path / "run/lock"
    lock.write_text("process 7 on a\n")
    process = subprocess.Popen([sys.executable, "-c", holder, lock], stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"locked\n"
        with pytest.raises(UserError, match=r"^output: .* is in use by another run \(process 7 on a\)"):
            train(config)
    finally:
        process.kill()
        process.communicate()
    with pytest.raises(UserError, match=r"none: no such file"):
        train(config)
    assert lock.read_text() == "process 7 on a\n" and [path.name for path in lock.parent.iterdir()] == ["lock"]


def test_a_run_of_an_earlier_version_has_the_defaults_of_newer_fields(tmp_path):
    old, new = tiny_run().to_dict(), tiny_run()
    del old["optimizer"]["eps"], old["init_from"], old["init_adapters"], old["adapter"]
    (tmp_path / "run.json").write_text(json.dumps({"config": old, "data": {}}))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    other = tiny_run(optimizer={"eps": 1e-6})
    with pytest.raises(UserError, match=r"another run \(optimizer\.eps is 1e-08 there, 1e-06 here\)"):
        claim(epath.Path(tmp_path), {"config": other.to_dict(), "data": {}})
    assert claim(epath.Path(tmp_path), {"config": new.to_dict(), "data": {}})


@pytest.mark.parametrize("record", ["", "{", "[]", "{}"])
def test_error_names_an_invalid_record(tmp_path, record):
    (tmp_path / "run.json").write_text(record)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(UserError, match=r"run\.json is damaged .*; choose another folder"):
        claim(epath.Path(tmp_path), {"config": tiny_run().to_dict(), "data": {}})
