"""Run configs: overrides, validation, and the shipped configs against the published recipes."""

import dataclasses
import math
from pathlib import Path

import pytest
import yaml

from codegen_jax.config import SourceConfig
from codegen_jax.config_file import load_config
from codegen_jax.errors import UserError

SOURCES = {
    "data.train": None,
    "data.validation": None,
    "data.sources": {"a": {"path": "x", "weight": 1}, "b": {"path": "y", "weight": 0.5, "validation": "z"}},
}
CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.fixture
def file(tmp_path):
    """A function that writes tiny_cpu.yaml with changes keyed by dotted name; None removes a field."""

    def write(changes=None):
        tree = yaml.safe_load((CONFIGS / "tiny_cpu.yaml").read_text())
        for name, value in (changes or {}).items():
            *sections, field = name.split(".")
            node = tree
            for section in sections:
                node = node[section]
            node[field] = value
            if value is None:
                del node[field]
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(tree))
        return path

    return write


def test_overrides_take_precedence_over_the_file(file):
    config = load_config(file(), ["--model.n_layer", "7", "--seed=3", "--optimizer.learning_rate", "1e-5"])
    assert (config.model.n_layer, config.seed, config.optimizer.learning_rate) == (7, 3, 1e-5)


@pytest.mark.parametrize("changes", [{}, SOURCES | {"data.skip_steps": [[3, 4], [9, 9]]}])
def test_config_round_trips_through_its_dict(file, changes):
    config = load_config(file(changes))
    path = file({section: value for section, value in config.to_dict().items() if value is not None})
    assert load_config(path) == config and hash(load_config(path)) == hash(config)


def test_mixture_is_read_and_its_sources_can_be_overridden(file):
    config = load_config(file(SOURCES), ["--data.sources.b.weight", "0.7"])
    assert config.data.mixture == {"a": SourceConfig("x", 1), "b": SourceConfig("y", 0.7, "z")}
    assert load_config(file()).data.mixture == {"": SourceConfig("demo/tokens/train", 1, "demo/tokens/validation")}


@pytest.mark.parametrize(
    ("changes", "overrides", "words"),
    [
        ({"model.n_layr": 3}, [], ["model", "n_layr"]),
        ({"modle": {"n_layer": 3}}, [], ["modle"]),
        ({"seeed": 3}, [], ["seeed"]),
        ({"model.n_layer": "two"}, [], ["run.yaml: model.n_layer: must be a whole number, got 'two'"]),
        ({"model.n_layer": 2.5}, [], ["run.yaml: model.n_layer: must be a whole number, got '2.5'"]),
        ({"model.dtype": "float8"}, [], ["model.dtype", "bfloat16", "float32", "float8"]),
        ({"model.n_head": None}, [], ["model", "n_head"]),
        ({"model.n_head": 5}, [], ["model.n_head", "5", "n_embd"]),
        ({"model.rotary_dim": 7}, [], ["model.rotary_dim", "7", "even"]),
        ({"model.n_layer": 0}, [], ["model.n_layer", "positive"]),
        ({"data.sequence_length": 4096}, [], ["data.sequence_length", "n_positions"]),
        ({"data.train": None, "data.validation": None}, [], ["data.train", "data.sources"]),
        ({"data.sources": {"a": {"path": "x", "weight": 1}}}, [], ["data.train", "data.sources", "not both"]),
        (SOURCES, ["--data.validation", "x"], ["data.validation", "data.sources.NAME.validation"]),
        (SOURCES, ["--data.sources.b.weight", "-1"], ["data.sources.b.weight", "-1", "positive"]),
        (SOURCES | {"data.sources": {"a": {"path": "x", "weight": math.inf}}}, [], ["data.sources.a.weight", "inf"]),
        (SOURCES | {"data.sources": {"a/b": {"path": "x", "weight": 1}}}, [], ["data.sources", "a/b", "without"]),
        (SOURCES | {"data.sources": {"a": {"path": "x"}}}, [], ["data.sources", "weight"]),
        ({"data.skip_steps": [[3, 2]]}, [], ["data.skip_steps", "[3, 2]", "first <= last"]),
        ({"data.skip_steps": [[0, 2]]}, [], ["data.skip_steps", "[0, 2]"]),
        ({"training.gradient_accumulation_steps": 3}, [], ["training.batch_size", "gradient_accumulation_steps"]),
        ({"optimizer.warmup_steps": -1}, [], ["optimizer.warmup_steps", "negative"]),
        ({}, ["--optimizer.b2", "1.0"], ["optimizer.b2", "[0, 1)"]),
        ({}, ["--mesh.data", "-1", "--mesh.fsdp", "-1"], ["mesh", "one axis"]),
        ({}, ["--model.colour", "red"], ["model.colour"]),
        ({}, ["--seed", "-1"], ["seed"]),
        ({}, ["--checkpoint.keep_latest", "0"], ["checkpoint.keep_latest"]),
    ],
)
def test_error_is_one_line_that_names_field_and_value(file, changes, overrides, words):
    with pytest.raises(UserError) as error:
        load_config(file(changes), overrides)
    message = str(error.value)
    assert "\n" not in message and all(word in message for word in words), message


def test_error_names_a_missing_or_invalid_file(tmp_path):
    with pytest.raises(UserError, match=r"none.yaml: no such file"):
        load_config(tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("model: [")
    with pytest.raises(UserError, match=r"broken.yaml"):
        load_config(broken)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configs_are_valid(path):
    assert load_config(path).output == f"runs/{path.stem}"


def test_all_twelve_runs_of_the_paper_have_a_config():
    stems = {f"{size}_{stage}" for size in ("350m", "2b", "6b", "16b") for stage in ("nl", "multi", "mono")}
    assert stems <= {path.stem for path in CONFIGS.glob("*.yaml")}


@pytest.mark.parametrize("size", ["350m", "2b", "6b", "16b"])
def test_stages_start_from_the_previous_stage_with_the_same_architecture(size):
    nl, multi, mono = (load_config(CONFIGS / f"{size}_{stage}.yaml") for stage in ("nl", "multi", "mono"))
    assert nl.model == multi.model == mono.model
    assert (nl.init_from, multi.init_from, mono.init_from) == (None, nl.output, multi.output)
    for config in (nl, multi, mono):
        assert config.training.z_loss == 1e-4 and config.optimizer.decay_mask == "jaxformer"
        assert config.data.sequence_length == config.model.n_positions == 2048


@pytest.mark.parametrize(
    ("stem", "tokens_per_step", "learning_rate"),
    [("350m_nl", 2**19, 3e-4), ("350m_multi", 2**19, 1.8e-4), ("2b_nl", 2**20, 1.6e-4), ("6b_nl", 2**20, 1.2e-4)],
)
def test_configs_match_the_published_recipes(stem, tokens_per_step, learning_rate):
    config = load_config(CONFIGS / f"{stem}.yaml")
    assert config.training.batch_size * config.data.sequence_length == tokens_per_step
    assert config.optimizer.learning_rate == learning_rate
    assert config.optimizer.warmup_steps == 3000


def test_model_flops_are_six_per_parameter_plus_causal_attention():
    model = dataclasses.replace(load_config(CONFIGS / "16b_nl.yaml").model)
    # 16,032,155,648 parameters, plus the embedding bias, which is folded in only on export
    expected = 6 * (16_032_155_648 + 6144) + 12 * 34 * 6144 * 2048 / 2
    assert math.isclose(model.flops_per_token(2048), expected)
