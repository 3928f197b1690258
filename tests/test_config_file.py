"""Errors about a config name the place and suggest the likely field."""

import json
import re
from operator import attrgetter
from pathlib import Path

import pytest
import yaml

from codegen_jax.config import RunConfig
from codegen_jax.config_file import FIELDS, dump_config, fields_help, load_config, shipped_config
from codegen_jax.errors import UserError
from tests.runs import tiny_run

TINY = (Path(__file__).parents[1] / "configs/tiny_cpu.yaml").read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--optimizer.learning_rat", "1e-3"], "--optimizer.learning_rat: no such field; did you mean --optimizer.l"),
        (["--model.n_layer", "two"], "--model.n_layer: must be a whole number, got 'two'"),
        (["--model.n_layer=2.5"], "--model.n_layer: must be a whole number, got '2.5'"),
        (["--model.n_head", "5"], "--model.n_head: 5 does not divide"),
        (
            ["--training.remat", "ful"],
            "--training.remat: must be one of auto, none, dots, qkv_attention, attention, full, got 'ful'",
        ),
        (["--data.skip_steps", "3"], "--data.skip_steps: must be a list of lists of whole numbers, got '3'"),
        (
            ["--data.sources.b.weigth", "1"],
            "--data.sources.b.weigth: no such field; did you mean --data.sources.b.weight",
        ),
        (["--data.sources.b.weight", "1"], "run.yaml: data.sources.b.path is missing; it must be text"),
        (["--model", "model.yaml"], "--model: must be a section with fields, got 'model.yaml'"),
        (["--config", "other.yaml"], "--config: no such field"),
        (["--print_config", "x"], "--print_config: no such field"),
        (["--seed"], "--seed: must be followed by a value"),
        (["stray"], "'stray': unexpected argument"),
    ],
)
def test_command_line_errors_name_the_flag(tmp_path, flags, message):
    (tmp_path / "run.yaml").write_text(TINY)
    with pytest.raises(UserError) as error:
        load_config(tmp_path / "run.yaml", flags)
    assert message in str(error.value) and (message[0] != "-" or str(error.value).startswith(message))


def test_run_json_is_read_as_the_runs_config(tmp_path):
    (tmp_path / "run.yaml").write_text(TINY)
    config = load_config(tmp_path / "run.yaml", ["--output", "1e3", "--training.sample_prompts", "[x, \U0001f600]"])
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
        (TINY.replace("batch_size: 16", "batch_size: true"), "training.batch_size: must be a whole number, got 'true'"),
        (TINY.replace("batch_size: 16", "batch_size: many"), "training.batch_size: must be a whole number, got 'many'"),
        (TINY + "\nprofile:\n", "profile: must be a section with fields, got None"),
        ("model: 3\n", "model: must be a section with fields, got '3'"),
        ("seed: 1\n", "output is missing; it must be text"),
        ("output: 2024-01-01\n", "model.n_layer is missing; it must be a whole number"),
        ("- a\n", "must consist of sections"),
        ("model: [\n", "not YAML"),
    ],
)
def test_file_errors_name_file_and_field(tmp_path, text, message):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        load_config(tmp_path / "run.yaml")
    assert str(error.value).startswith(f"{tmp_path}/run.yaml: {message}")


def test_lists_can_be_appended_to(tmp_path):
    (tmp_path / "run.yaml").write_text(TINY)
    before = load_config(tmp_path / "run.yaml").training.sample_prompts
    config = load_config(tmp_path / "run.yaml", ["--training.sample_prompts+=class A:"])
    assert config.training.sample_prompts == [*before, "class A:"]


def write_field(file: Path, field: str, text: str) -> None:
    """Write the tiny config with one field written as `text`."""
    *section, name = field.split(".")
    tree = yaml.safe_load(TINY)
    (tree[section[0]] if section else tree)[name] = "HERE"
    file.write_text(yaml.safe_dump(tree).replace("HERE", text))


def mixture(name: str, tmp_path: Path, flags: list[str] | None = None) -> RunConfig:
    """Load the tiny config with two sources: en, and one with its key written as `name`."""
    text = TINY.replace(
        "  train: demo/tokens/train\n",
        f"  sources:\n    {name}: {{path: p, weight: 1}}\n    en: {{path: q, weight: 1}}\n",
    )
    (tmp_path / "run.yaml").write_text(text.replace("  validation: demo/tokens/validation\n", ""))
    return load_config(tmp_path / "run.yaml", flags)


@pytest.mark.parametrize("name", ["no", "on", "2020", "1e3", "0x1f", "1:30", "2024-01-01", "null", "~", "'no'"])
def test_source_names_are_read_as_written(tmp_path, name):
    name_alone = name.strip("'")
    config = mixture(name, tmp_path, [f"--data.sources.{name_alone}.weight", "3"])
    assert {key: source.weight for key, source in config.data.sources.items()} == {name_alone: 3, "en": 1}


@pytest.mark.parametrize("name", ["a.b", "1.5", "a/b", "''"])
def test_source_names_without_dots_and_slashes_are_required(tmp_path, name):
    message = r"run.yaml: data.sources: a source's name must be non-empty text without slashes or periods, got '.*'"
    with pytest.raises(UserError, match=message):
        mixture(name, tmp_path)


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("output", "2024"),
        ("output", "2024-01-01"),
        ("output", "no"),
        ("init_from", "1e3"),
        ("init_from", "010"),
        ("data.train", "on"),
        ("training.steps", "1e3"),
        ("training.steps", "1.0E+3"),
        ("training.steps", "1_000"),
        ("training.steps", "010"),
        ("training.steps", "0x10"),
        ("data.skip_steps", "[[1e3, 2e3], [25e2, 3_000]]"),
        ("optimizer.learning_rate", "1e-3"),
        ("optimizer.learning_rate", "1E-3"),
        ("data.document_mask", "yes"),
        ("data.document_mask", "off"),
        ("training.spike_sigmas", "null"),
        ("training.spike_sigmas", "6"),
    ],
)
def test_values_mean_the_same_in_a_file_and_on_the_command_line(tmp_path, field, text):
    write_field(tmp_path / "run.yaml", field, text)
    (tmp_path / "tiny.yaml").write_text(TINY)
    values = [
        attrgetter(field)(load_config(tmp_path / file, flags))
        for file, flags in (("run.yaml", []), ("tiny.yaml", [f"--{field}", text]))
    ]
    expected = {
        "training.steps": lambda: 10 if text == "010" else 16 if text == "0x10" else 1000,
        "data.skip_steps": lambda: [[1000, 2000], [2500, 3000]],
        "optimizer.learning_rate": lambda: 1e-3,
        "data.document_mask": lambda: text == "yes",
        "training.spike_sigmas": lambda: 6 if text == "6" else None,
    }.get(field, lambda: text)()
    assert values == [expected, expected] and type(values[0]) is type(values[1])


@pytest.mark.parametrize(
    ("field", "text", "kind"),
    [
        ("training.steps", "1.5e0", "a whole number"),
        ("training.steps", "1e-3", "a whole number"),
        ("training.steps", "1e400", "a whole number"),
        ("training.steps", "1:30", "a whole number"),
        ("optimizer.learning_rate", "1:30", "a number"),
        ("resume", "no", "one of auto, never"),
        ("model.init", "off", "one of jaxformer, huggingface"),
        ("model.dtype", "float32 ", "one of bfloat16, float32"),
        ("data.document_mask", "1", "true or false"),
    ],
)
def test_invalid_values_are_shown_as_written(tmp_path, field, text, kind):
    write_field(tmp_path / "run.yaml", field, f"'{text}'" if text.endswith(" ") else text)
    (tmp_path / "tiny.yaml").write_text(TINY)
    for file, flags, place in (("run.yaml", [], f"{tmp_path}/run.yaml: "), ("tiny.yaml", [f"--{field}", text], "--")):
        with pytest.raises(UserError) as error:
            load_config(tmp_path / file, flags)
        assert str(error.value) == f"{place}{field}: must be {kind}, got {text!r}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\n" + TINY + "seed: 2\n", r"seed: set twice, on lines 1 and \d+$"),
        (TINY + "training: {steps: 5, batch_size: 4}\n", r"training: set twice, on lines 20 and \d+$"),
        (TINY.replace("  steps: 1000\n", "  steps: 1\n  'steps': 2\n"), "steps: set twice, on lines 21 and 22$"),
        (TINY + "mesh: {data: 1}\n", "mesh: set twice"),
        ("data: {sources: {a: {path: p, weight: 1}, a: {path: q, weight: 1}}}\n", "a: set twice, on lines 1 and 1$"),
        (TINY + "model.n_layer: 3\n", "model.n_layer: set twice"),
    ],
)
def test_duplicate_keys_are_refused(tmp_path, text, message):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(UserError, match=f"^{tmp_path}/run.yaml: {message}"):
        load_config(tmp_path / "run.yaml")


def test_keys_may_override_merged_ones(tmp_path):
    text = TINY.replace(
        "  train: demo/tokens/train\n",
        "  sources:\n    a: &a {path: p, weight: 1}\n    b: {<<: *a, path: q}\n",
    )
    (tmp_path / "run.yaml").write_text(text.replace("  validation: demo/tokens/validation\n", ""))
    sources = load_config(tmp_path / "run.yaml").data.sources
    assert {name: (source.path, source.weight) for name, source in sources.items()} == {"a": ("p", 1), "b": ("q", 1)}


def test_windows_line_endings_are_read_and_a_tab_is_reported_by_line(tmp_path):
    (tmp_path / "run.yaml").write_bytes(b"\xef\xbb\xbf" + TINY.replace("\n", "\r\n").encode())
    assert load_config(tmp_path / "run.yaml").training.steps == 1000
    (tmp_path / "run.yaml").write_text(TINY.replace("  n_layer", "\tn_layer"))
    with pytest.raises(UserError, match=r"run.yaml: not YAML \(.*line 4, [^\n]*$"):
        load_config(tmp_path / "run.yaml")


@pytest.mark.parametrize("field", ["output", "init_from", "data.train", "data.validation"])
def test_home_and_variables_are_expanded_in_paths(tmp_path, monkeypatch, field):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/scratch")
    monkeypatch.delenv("NOPE", raising=False)
    for text, path in [
        ("~/x", "/home/me/x"),
        ("$SCRATCH/x", "/scratch/x"),
        ("gs://bucket/${SCRATCH}x", "gs://bucket//scratchx"),
        ("a~b", "a~b"),
        ("a$$b", "a$b"),
    ]:
        write_field(tmp_path / "run.yaml", field, text)
        assert attrgetter(field)(load_config(tmp_path / "run.yaml")) == path
    write_field(tmp_path / "run.yaml", field, "$NOPE/x")
    with pytest.raises(UserError, match=rf"run.yaml: {field}: \$NOPE/x: environment variable NOPE is not set"):
        load_config(tmp_path / "run.yaml")
    with pytest.raises(UserError, match=r"^--output: .*NOPE"):
        load_config(tmp_path / "run.yaml", [f"--{field}", "x", "--output", "${NOPE}"])


def test_variables_are_expanded_in_paths_of_sources(tmp_path, monkeypatch):
    monkeypatch.setenv("SCRATCH", "/scratch")
    flags = ["--data.sources.a.path", "$SCRATCH/a", "--data.sources.a.validation", "$SCRATCH/b"]
    source = mixture("a", tmp_path, flags).data.sources["a"]
    assert (source.path, source.validation) == ("/scratch/a", "/scratch/b")


def test_help_lists_all_fields_with_defaults_and_documentation():
    text = " ".join(fields_help().split())
    for name in FIELDS:
        assert "*" in name or re.search(rf"--{name}[ ,]", text), name  # Python 3.13 writes --lists, --lists+ LISTS
    assert "--optimizer.b2 B2 decay of the second moment. (type: float, default: 0.999)" in text
    assert "CONFIG" not in text and "print_config" not in text


def test_dumped_config_round_trips(tmp_path):
    config = load_config(Path(__file__).parents[1] / "configs/tiny_cpu.yaml", ["--data.skip_steps", "[[2, 3]]"])
    (tmp_path / "run.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "run.yaml") == config


def test_shipped_config_is_found_by_name():
    found = shipped_config("tiny_cpu")
    assert found and found.read_text() == TINY
    assert shipped_config("unlike_any") is None and shipped_config("configs/tiny_cpu.yaml") is None
    with pytest.raises(UserError, match="did you mean tiny_cpu"):
        shipped_config("tiny_cp")


def test_adapter_is_a_flag_of_train_as_of_the_other_verbs(tmp_path, monkeypatch):
    monkeypatch.setenv("PLACE", "/data")
    (tmp_path / "run.yaml").write_text(dump_config(tiny_run(init_from="base", init_adapters=["$PLACE/a"])))
    config = load_config(tmp_path / "run.yaml", ["--adapter", "$PLACE/b=0.5", "--adapter", "c"])
    assert config.init_adapters == ["/data/a", "/data/b=0.5", "c"]
