"""Mistakes in a config say where they stand, and what was probably meant."""

import json
from pathlib import Path

import pytest

from codegen_jax.config_file import FIELDS, dump_config, fields_help, load_config
from codegen_jax.errors import UserError

TINY = (Path(__file__).parents[1] / "configs/tiny_cpu.yaml").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--optimizer.learning_rat", "1e-3"], "--optimizer.learning_rat: no such field; did you mean --optimizer.l"),
        (["--model.n_layer", "two"], "--model.n_layer: 'two' must be a whole number"),
        (["--model.n_layer=2.5"], "--model.n_layer: '2.5' must be a whole number"),
        (["--model.n_head", "5"], "--model.n_head: 5 does not divide"),
        (["--training.remat", "ful"], "--training.remat: 'ful' must be one of auto, none, dots"),
        (["--data.skip_steps", "3"], "--data.skip_steps: '3' must be a list of lists of whole numbers"),
        (
            ["--data.sources.b.weigth", "1"],
            "--data.sources.b.weigth: no such field; did you mean --data.sources.b.weight",
        ),
        (["--data.sources.b.weight", "1"], "run.yaml: data.sources.b.path is missing; it must be text"),
        (["--model", "model.yaml"], "--model: 'model.yaml' must be a section"),
        (["--config", "other.yaml"], "--config: no such field"),
        (["--print_config", "x"], "--print_config: no such field"),
        (["--seed"], "--seed: must be followed by a value"),
        (["stray"], "'stray': not a field"),
    ],
)
def test_a_mistake_on_the_command_line_is_named_by_its_flag(tmp_path, words, message):
    (tmp_path / "run.yaml").write_text(TINY)
    with pytest.raises(UserError) as error:
        load_config(tmp_path / "run.yaml", words)
    assert message in str(error.value) and (message[0] != "-" or str(error.value).startswith(message))


def test_a_runs_record_is_read_as_its_config(tmp_path):
    (tmp_path / "run.yaml").write_text(TINY)
    config = load_config(tmp_path / "run.yaml", ["--output", "1e3", "--training.sample_prompts", "[x, y]"])
    (tmp_path / "run.json").write_text(json.dumps({"config": config.to_dict(), "data": {}}))
    assert load_config(tmp_path / "run.json") == config
    assert load_config(tmp_path / "run.json", ["--training.steps", "9"]).training.steps == 9
    (tmp_path / "run.json").write_text(json.dumps({"config": config.to_dict() | {"sed": 1}}))
    with pytest.raises(UserError, match=r"run.json: sed: no such field; did you mean seed\?"):
        load_config(tmp_path / "run.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TINY.replace("n_layer", "n_layr"), "model.n_layr: no such field; did you mean model.n_layer?"),
        (TINY.replace("\ndata:", "\ndat:"), "dat: no such field; did you mean data?"),
        (TINY.replace("batch_size: 16", "batch_size: true"), "training.batch_size: True must be a whole number"),
        (TINY.replace("batch_size: 16", "batch_size: many"), "training.batch_size: 'many' must be a whole number"),
        (TINY + "\ncheckpoint:\n", "checkpoint: None must be a section"),
        ("model: 3\n", "model: 3 must be a section"),
        ("seed: 1\n", "output is missing; it must be text"),
        ("output: 2024-01-01\n", "model.n_layer is missing; it must be a whole number"),
        ("- a\n", "must be sections of fields"),
        ("model: [\n", "not YAML"),
    ],
)
def test_a_mistake_in_a_file_is_named_by_file_and_field(tmp_path, text, message):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        load_config(tmp_path / "run.yaml")
    assert str(error.value).startswith(f"{tmp_path}/run.yaml: {message}")


def test_a_list_can_be_appended_to(tmp_path):
    (tmp_path / "run.yaml").write_text(TINY)
    before = load_config(tmp_path / "run.yaml").training.sample_prompts
    config = load_config(tmp_path / "run.yaml", ["--training.sample_prompts+=class A:"])
    assert config.training.sample_prompts == [*before, "class A:"]


def test_a_source_is_named_by_text_without_dots(tmp_path):
    for name in ("a.b", 2020):
        text = TINY.replace("  train: demo/tokens/train\n", f"  sources: {{{name}: {{path: p, weight: 1}}}}\n")
        (tmp_path / "run.yaml").write_text(text.replace("  validation: demo/tokens/validation\n", ""))
        with pytest.raises(UserError, match=rf"run.yaml: data.sources: {name!r} must be a name without / and ."):
            load_config(tmp_path / "run.yaml")


def test_help_lists_every_field_with_its_default_and_documentation():
    text = " ".join(fields_help().split())
    for name in FIELDS:
        assert "*" in name or f"--{name} " in text, name
    assert "--optimizer.b2 B2 decay of the second moment. (type: float, default: 0.999)" in text
    assert "CONFIG" not in text and "print_config" not in text


def test_a_dumped_config_loads_as_itself(tmp_path):
    config = load_config(Path(__file__).parents[1] / "configs/tiny_cpu.yaml", ["--data.skip_steps", "[[2, 3]]"])
    (tmp_path / "run.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "run.yaml") == config
