"""Former names of options and flags give the same result as the current ones, with one warning."""

import warnings

import pytest

from codegen_jax import Options
from codegen_jax.cli import make_parser
from codegen_jax.config import CodeGenConfig, MeshConfig
from codegen_jax.errors import UserError
from codegen_jax.inference.generator import Generator
from codegen_jax.model.codegen import init_params
from codegen_jax.sharding import make_mesh
from tests.runs import devices

GENERATE = ["generate", "run", "--prompt", "x"]
DECODE_PLAN = ["plan", "run.yaml", "--topology", "v4-8", "--mode", "decode"]


@pytest.fixture(scope="module")
def generator(tokenizer):
    config = CodeGenConfig(1, 32, 4, 4, vocab_size=512, n_positions=64, dtype="float32")
    mesh = make_mesh(MeshConfig(1, 1, 1), devices(1))
    loaded = Generator.of_params(config, init_params(config, seed=0), tokenizer, mesh)
    return Generator(config, loaded.weights, tokenizer, mesh, draft="lookup")


@pytest.mark.parametrize("make", [Options, lambda **options: Options.of(options)])
def test_an_option_is_accepted_by_its_former_name(make):
    with pytest.warns(DeprecationWarning, match="^num_guesses is deprecated; use num_draft_tokens$") as warned:
        assert make(num_guesses=7, temperature=0) == make(num_draft_tokens=7, temperature=0)
    assert len(warned) == 1 and warned[0].filename == __file__


def test_methods_accept_former_names_with_one_warning_that_points_to_the_caller(generator):
    options = {"max_new_tokens": 12, "temperature": 0}
    for method in ("generate", "complete", "complete_turn", "stream"):
        prompt = "x" if method in ("generate", "stream") else ["x"]
        with pytest.warns(DeprecationWarning, match="^num_guesses is ") as warned:
            former = getattr(generator, method)(prompt, num_guesses=2, **options)
        current = getattr(generator, method)(prompt, num_draft_tokens=2, **options)
        assert [len(warned), warned[0].filename] == [1, __file__]
        if method == "complete":
            assert former == current and former[0].proposed % 2 == 0
    with pytest.warns(DeprecationWarning, match="^rows is deprecated; use batch_size$"):
        generator.warmup(rows=1, prompt_tokens=4, max_new_tokens=2)


def test_current_names_give_no_warning(generator):
    with warnings.catch_warnings(action="error"):
        generator.complete(["x"], num_draft_tokens=2, max_new_tokens=2)
        generator.warmup(1, 4, max_new_tokens=2)


@pytest.mark.parametrize("make", [Options, lambda **options: Options.of(options)])
def test_an_option_given_by_both_names_is_an_error(make):
    message = "^num_draft_tokens: was also given by its former name num_guesses; give only num_draft_tokens$"
    with pytest.raises(UserError, match=message):
        make(num_guesses=4, num_draft_tokens=4)


def test_a_former_name_is_unknown_to_methods_without_the_current_one(generator):
    with pytest.raises(UserError, match=r"^rows: no such option"):
        generator.generate("x", rows=1)


@pytest.mark.parametrize(
    ("words", "former", "current"),
    [(GENERATE, "--num-guesses", "--num-draft-tokens"), (DECODE_PLAN, "--rows", "--batch-size")],
)
@pytest.mark.parametrize("value", [["3"], "3"])
def test_a_flag_is_accepted_by_its_former_name_with_one_warning(words, former, current, value, caplog):
    given = lambda flag: [flag, *value] if isinstance(value, list) else [f"{flag}={value}"]
    parsed = make_parser().parse_args([*words, *given(former)])
    assert caplog.messages == [f"{former} is deprecated; use {current}"]
    assert {**vars(parsed), "parser": 0} == {**vars(make_parser().parse_args([*words, *given(current)])), "parser": 0}
    assert len(caplog.messages) == 1
    with pytest.raises(UserError, match=f"^{current}: was also given by its former name {former}; give only {current}"):
        make_parser().parse_args([*words, *given(former), *given(current)])


def test_help_shows_only_current_flags(capsys):
    for verb, former, current in (
        ("generate", "--num-guesses", "--num-draft-tokens"),
        ("plan", "--rows", "--batch-size"),
    ):
        with pytest.raises(SystemExit):
            make_parser().parse_args([verb, "--help"])
        text = capsys.readouterr().out
        assert current in text and former not in text
