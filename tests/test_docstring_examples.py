"""The examples (>>>) in docstrings give the results that they show, and every public call has one."""

import ast
import doctest
import importlib
import inspect
from pathlib import Path

import jax
import numpy as np
import pytest
from tokenizers import ByteLevelBPETokenizer

import codegen_jax
from codegen_jax.config import CodeGenConfig, MeshConfig, OptimizerConfig, TrainingConfig
from codegen_jax.data.tokenizer import BpeTokenizer
from codegen_jax.inference.generator import Generator
from codegen_jax.model.codegen import init_params
from codegen_jax.sharding import make_mesh
from codegen_jax.weights.base import Index, Weights
from codegen_jax.weights.checkpoint_writer import write_checkpoint
from tests.runs import devices

ROOT = Path(__file__).parents[1]
FUNCTION = "def double(x):\n    return 2 * x\n"
CONFIG = CodeGenConfig(1, 64, 4, 4, vocab_size=320, n_positions=256, init="huggingface", dtype="float32")

# modules with examples that need data which tests do not have; only their syntax is checked
UNRUN = {
    "evaluation.harness.model": "downloads a task",
    "evaluation.humaneval_perplexity": "needs a trained model and all of HumanEval",
    "evaluation.judged": "needs the output folder of an evaluation",
    "evaluation.mtpb.perplexity": "needs a trained model and MTPB's problems",
}


def docstrings() -> dict[str, str]:
    """All docstrings with examples, by "module:qualified.name"."""
    found = {}

    def visit(node: ast.AST, module: str, names: tuple[str, ...]) -> None:
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ">>>" in (ast.get_docstring(node) or ""):
            found[f"{module}:{'.'.join(names)}"] = ast.get_docstring(node)
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef):
                visit(child, module, (*names, child.name))

    for file in sorted((ROOT / "codegen_jax").rglob("*.py")):
        module = ".".join(file.relative_to(ROOT / "codegen_jax").with_suffix("").parts)
        visit(ast.parse(file.read_text()), module, ())
    return found


DOCSTRINGS = docstrings()
RUN = [place for place in DOCSTRINGS if place.partition(":")[0] not in UNRUN]
PUBLIC = {name: getattr(codegen_jax, name) for name in codegen_jax.__all__} | {
    f"Generator.{name}": getattr(Generator, name)
    for name, member in vars(Generator).items()
    if not name.startswith("_") and callable(getattr(Generator, name))
}


class Bigrams(Weights):
    """A network that continues FUNCTION: a token's logits depend only on that token, and favor the one after it."""

    def __init__(self) -> None:
        tokenizer = ByteLevelBPETokenizer()
        tokenizer.train_from_iterator([FUNCTION] * 2, vocab_size=320, special_tokens=["<|endoftext|>"])
        super().__init__("bigrams", CONFIG, BpeTokenizer(tokenizer.to_str()))
        ids = [*self.tokenizer.encode(FUNCTION), self.tokenizer.eos_id]
        assert len(set(ids)) == len(ids)
        embedding_VD = np.random.default_rng(0).normal(size=(320, 64)).astype(np.float32)
        head_DV = np.zeros((64, 320), np.float32)
        head_DV[:, ids[1:]] = embedding_VD[ids[:-1]].T
        self.params = jax.tree.map(np.array, init_params(CONFIG, seed=0))
        self.params |= {"embedding": embedding_VD, "head": head_DV}
        for name in ("attention_out", "fc_out", "fc_out_bias"):  # the block adds nothing to the embedding
            self.params["blocks"][name][:] = 0

    def dtype(self, name: str) -> np.dtype:
        return np.dtype(np.float32)

    def read(self, name: str, index: Index) -> np.ndarray:
        value = self.params
        for key in name.split("."):
            value = value[key]
        return value[index]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with the model runs/double and the configs."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "runs").mkdir()
    (folder / "configs").symlink_to(ROOT / "configs")
    write_checkpoint(Bigrams(), folder / "runs/double", lambda _: None)
    return folder


def names_for(module: str) -> dict:
    """Names that the examples of a module use in addition to the module's own."""
    names = {"codegen_jax": codegen_jax, "np": np}
    if module == "evaluation.prompt_perplexity":
        names["model"] = codegen_jax.load("runs/double")
    if module == "training.resolve":
        from codegen_jax.training.step import make_train_step

        optimizer = OptimizerConfig(learning_rate=1e-3, end_learning_rate=1e-4, warmup_steps=1, decay_steps=2)
        names |= dict(mesh=make_mesh(MeshConfig(1, 1, 1), devices(1)), model=CONFIG, optimizer=optimizer)
        names |= dict(TrainingConfig=TrainingConfig, make_train_step=make_train_step)
    return names


@pytest.mark.parametrize("place", RUN)
def test_an_example_gives_the_result_shown(place, folder, monkeypatch):
    monkeypatch.chdir(folder)
    name = place.partition(":")[0]
    module = importlib.import_module(f"codegen_jax.{name}".removesuffix(".__init__"))
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    names = vars(module) | {"__name__": module.__name__} | names_for(name)
    test = doctest.DocTestParser().get_doctest(DOCSTRINGS[place], names, place, module.__file__, 0)
    printed: list[str] = []
    results = doctest.DocTestRunner(optionflags=flags).run(test, out=printed.append)
    assert results.attempted > 0 and results.failed == 0, "".join(printed)


@pytest.mark.parametrize("place", sorted(DOCSTRINGS.keys() - set(RUN)))
def test_an_example_that_is_not_run_has_valid_syntax(place):
    for example in doctest.DocTestParser().get_examples(DOCSTRINGS[place]):
        compile(example.source, place, "single")


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_call_has_an_example(name):
    assert doctest.DocTestParser().get_examples(inspect.getdoc(PUBLIC[name]) or ""), f"{name} has no example"


def test_a_wrong_example_is_noticed():
    test = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", "wrong", 0)
    assert doctest.DocTestRunner().run(test, out=lambda _: None).failed == 1
