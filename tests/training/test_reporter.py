"""What a run leaves for people to look at: lines, numbers, samples, events, a trace and a summary."""

import io
import math
import struct
import sys

import pytest
from tensorboardX.proto.event_pb2 import Event

from codegen_jax.errors import RUN_LOG, UserError
from codegen_jax.training.clock import Clock
from codegen_jax.training.loop import train
from codegen_jax.training.metrics import read_lines, read_metrics
from codegen_jax.training.reporter import Reporter
from tests.runs import tiny_run

PROMPTS = ["def f(x):", "import"]


def observed(output, tokens, **training):
    training = {"sample_prompts": PROMPTS, "sample_tokens": 5, "wandb_project": "tests", "log_every": 2} | training
    return tiny_run(
        output, tokens, data={"validation": str(tokens)}, training=training, profile={"start": 2, "steps": 2}
    )


@pytest.fixture(scope="module")
def output(tmp_path_factory, token_folder):
    """The output of a run that was stopped after step 4 and, after one lost line, went on."""
    folder = tmp_path_factory.mktemp("observed") / "a_run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        train(observed(folder, token_folder, steps=4))
        train(observed(folder, token_folder))
    return folder


def events(folder):
    """All of TensorBoard's events, file by file."""
    for path in sorted((folder / "tensorboard").iterdir()):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("Q", content[:8])
            yield Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]


def test_samples_of_each_prompt_are_kept_at_each_validation(output):
    samples = read_lines(output / "samples.jsonl")
    made = [(sample["step"], sample["prompt"]) for sample in samples]
    assert made == [(step, prompt) for step in (2, 3, 4, 6) for prompt in PROMPTS]
    assert any(sample["completion"] for sample in samples)


def test_every_number_is_in_the_log_and_in_tensorboard(output):
    logged = {
        (line["step"], name): value for line in read_metrics(output) for name, value in line.items() if name != "step"
    }
    shown = {
        (event.step, value.tag): value.simple_value
        for event in events(output)
        for value in event.summary.value
        if value.HasField("simple_value")
    }
    assert logged.keys() == shown.keys()
    assert all(math.isclose(logged[key], shown[key], rel_tol=1e-6) for key in logged)
    assert {"loss", "grad_norm", "tokens_per_second", "goodput", "skipped"} <= {name for _, name in logged}
    assert all(0 < line["goodput"] < 1 for line in read_metrics(output) if "loss" in line)


def test_weights_and_biases_gets_the_run_when_asked(output):
    assert len(list(output.glob("wandb/offline-run-*/run-a_run.wandb"))) == 2


def test_a_window_of_steps_is_traced(output):
    (trace,) = (output / "profile").rglob("*.xplane.pb")
    assert trace.stat().st_size > 1000


def test_the_summary_tells_the_outcome_the_loss_and_where_the_time_went(output):
    text = (output / "summary.md").read_text()
    last = [line for line in read_metrics(output) if "loss" in line][-1]
    assert text.startswith("# a_run\n\n- outcome: finished\n- steps: 6 of 6\n")
    assert f"- loss: {last['loss']:.4f}" in text and "- best validation loss: " in text
    assert "![loss](loss.png)" in text and (output / "loss.png").exists()
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ") and "%" in line]
    shares = {cause.strip(): float(share.strip().rstrip("%")) for cause, _, share in rows}
    assert {"steps", "compile", "checkpoint", "validation", "data"} <= shares.keys()
    assert sum(shares.values()) == pytest.approx(100, abs=0.5)
    assert "  n_embd: 32\n" in text


def test_lines_tell_the_start_the_steps_and_the_validations(tmp_path, token_folder, caplog):
    caplog.set_level("INFO", RUN_LOG)
    train(observed(tmp_path / "run", token_folder, steps=4, wandb_project=None))
    lines = [record.getMessage() for record in caplog.records if record.name == RUN_LOG]
    assert lines[0].startswith("first step done after ") and "compile" in lines[0]
    assert [line.split("  loss")[0] for line in lines if "  loss" in line] == [f"step {n:>6}" for n in (1, 2, 4)]
    assert any(line.startswith("step      2  validation loss ") for line in lines)
    assert any(line.startswith(f"step      3  sample: {PROMPTS[0]!r} -> ") for line in lines)
    assert lines[-1] == f"summary: {tmp_path / 'run/summary.md'}"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_on_a_terminal_a_bar_shows_the_steps_that_are_done_and_the_last_loss(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    reporter = Reporter(tiny_run(), None, Clock(), first=2, epochs=lambda _: {})
    for step, loss in ((3, 1.5), (4, 1.25)):
        others = dict(cross_entropy=loss, grad_norm=1.0, learning_rate=0.1, bad_steps=0, skipped=0)
        reporter.step(step, {"loss": loss} | others)
    reporter.bar.close()
    shown = sys.stderr.getvalue().split("\r")[-1]
    assert " 4/6 " in shown and "loss=1.250" in shown and "tokens/s=" in shown


def test_wandb_that_is_not_installed_is_named_before_anything_is_made(tmp_path, token_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("codegen_jax.training.metrics.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"training.wandb_project: wandb is not installed"):
        train(observed(tmp_path / "run", token_folder))
    assert not (tmp_path / "run").exists()
