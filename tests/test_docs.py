"""The commands in the docs work, in order and as written, apart from a table of replacements.

The language of a fenced block determines how it is tested. `bash` is run. `console` is run and must print the output
shown, apart from numbers. `text` must have been printed by the previous block. `python` runs as a script. A `yaml`
section replaces the same section of the config named in the text above, in the copy named there.
"""

import contextlib
import dataclasses
import doctest
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import yaml
from markdown_it import MarkdownIt
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

import codegen_jax
from codegen_jax.cli import make_parser, refuse_unknown
from codegen_jax.config import MeshConfig
from codegen_jax.config_file import dump_config, load_config
from codegen_jax.data.batches import Batches
from codegen_jax.data.sources import make_order, open_sources
from codegen_jax.sharding import make_mesh
from codegen_jax.training.metrics import read_metrics
from codegen_jax.training.step import batch_sharding
from tests.conftest import write_shard
from tests.peers import logits, peer, save, tiny_bpe
from tests.processes import free_port
from tests.runs import tiny_run

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Document:
    """How a document is tested.

    Attributes:
        replaced: text as written -> text as run, in all blocks.
        slow: beginnings of blocks that take more than a minute; scripts/test_slow runs them.
        skipped: beginnings of blocks that cannot be run -> the reason; only their arguments are checked.
    """

    replaced: dict[str, str] = field(default_factory=dict)
    slow: tuple[str, ...] = ()
    skipped: dict[str, str] = field(default_factory=dict)


SMALL = (
    "--model.n_layer 2 --model.n_embd 32 --model.n_head 4 --model.rotary_dim 4 --model.dtype float32 "
    "--data.sequence_length 64 --training.steps 3 --training.batch_size 8 --training.eval_every 3"
)
DOCUMENTS = {
    "README.md": Document(
        slow=("codegen-jax plan",),
        skipped={
            "scripts/code_shards": "the tutorial has these commands",
            "scripts/demo": "the demo has a test of its own below, and scripts/test is what runs this",
            "python3 -m venv": "installs from a registry",
            "codegen-jax prepare shards/train": "the page on fine-tuning has these commands",
            "codegen-jax evaluate Salesforce": "released weights are not on this machine",
        },
    ),
    "docs/tutorial.md": Document(
        replaced={
            "/usr/lib/python3.11": "python3.11",  # only a few files
            "train configs/tiny_cpu.yaml": "train configs/tiny_cpu.yaml --training.steps 5 --training.log_every 1 "
            "--training.eval_every 5",
        },
        skipped={"    def read(self": "the demo's model wrote it, and writes something else on another machine"},
    ),
    "docs/conversion.md": Document(),
    "docs/planning.md": Document(slow=("codegen-jax plan",)),
    "docs/data.md": Document(
        replaced={
            "--workers 32": "--workers 1",
            "train mixture.yaml": f"train mixture.yaml {SMALL} --model.vocab_size 512 --mesh.data 1",
            "show configs/tiny_cpu.yaml --step 1000": "show configs/tiny_cpu.yaml --data.train data/pile/train "
            "--data.validation data/pile/validation --step 5",
            "demo/tokens/train": "data/pile/train",
        },
        skipped={
            "codegen-jax prepare pile/train --output data/pile/train --tokenizer gpt2 \\\n": "requires Slurm and Ray",
        },
    ),
    "docs/finetuning.md": Document(
        replaced={
            "~/src/my_project": "my_project",
            "train configs/finetune_350m.yaml": f"train configs/finetune_350m.yaml {SMALL} --model.vocab_size 300",
            "train configs/finetune_350m_lora.yaml": "train configs/finetune_350m_lora.yaml --training.epochs null "
            f"{SMALL} --model.vocab_size 300",
            "--format pairs": "--sequence-length 64 --format pairs",
            "--format messages": "--sequence-length 64 --format messages",
        },
    ),
    "docs/training.md": Document(
        replaced={
            "host0:1234": f"localhost:{free_port()}",
            "--distributed.num_processes 2": "--distributed.num_processes 1 --training.steps 2",
            "CONFIG.yaml": "run.yaml",  # a run of six steps
            "--step 4990": "--step 3",
            "[[4985,4990]]": "[[3,4]]",
        },
    ),
}


LANGUAGES = {".c": "C", ".cpp": "C++", ".go": "Go", ".java": "Java", ".js": "JavaScript", ".py": "Python"}


class Block(NamedTuple):
    """A fenced block.

    Attributes:
        place: file and line.
        language: the language after the opening fence.
        text: the block's content.
        above: the document's text before the block.
    """

    place: str
    language: str
    text: str
    above: str

    def begins_with(self, beginnings) -> bool:
        return self.text.removeprefix("$ ").startswith(tuple(beginnings))


def blocks(document: str) -> list[Block]:
    text = (ROOT / document).read_text()
    lines = text.splitlines()
    return [
        Block(f"{document}:{token.map[0] + 1}", token.info, token.content, "\n".join(lines[: token.map[0]]))
        for token in MarkdownIt().parse(text)
        if token.type == "fence"
    ]


def commands(block: Block) -> list[tuple[str, str]]:
    """The commands in a console block, each with the output shown below it."""
    return re.findall(r"^\$ ((?:.*\\\n)*.*)\n((?:(?!\$ ).*\n)*)", block.text, re.MULTILINE)


class Reader:
    """A reader who follows a document in a folder."""

    def __init__(self, folder: Path, replaced: dict[str, str], xla_flags: str):
        self.folder = folder
        self.replaced = replaced
        self.xla_flags = xla_flags
        self.printed = ""  # output of the previous block

    def run(self, block: Block) -> None:
        text = block.text
        for written, run in self.replaced.items():
            text = text.replace(written, run)
        runners = {"bash": self.bash, "console": self.console, "text": self.text} | {
            "python": self.python,
            "yaml": self.yaml,
        }
        assert block.language in runners, f"{block.place}: the language must be one of {', '.join(runners)}"
        runners[block.language](block._replace(text=text))

    def bash(self, block: Block) -> None:
        code, self.printed = self.shell(block.text)
        assert code == 0, f"{block.place}: {self.printed}"

    def console(self, block: Block) -> None:
        assert block.text.startswith("$ "), f"{block.place}: no command to run"
        for command, shown in commands(block):
            code, self.printed = self.shell(command)
            assert code == (2 if "codegen-jax: error:" in shown else 0), f"{block.place}: {self.printed}"
            assert_like(self.printed, shown, self.folder, block.place)

    def text(self, block: Block) -> None:
        assert_like(self.printed, f"...\n{block.text}...\n", self.folder, block.place)

    def python(self, block: Block) -> None:
        with contextlib.chdir(self.folder):
            exec(compile(block.text, block.place, "exec"), {"__name__": "__main__"})

    def yaml(self, block: Block) -> None:
        config, copy = re.findall(r"`([\w/]+\.yaml)`", block.above)[-2:]
        sections = yaml.safe_load((self.folder / config).read_text()) | yaml.safe_load(block.text)
        (self.folder / copy).write_text(yaml.safe_dump(sections))

    def shell(self, script: str) -> tuple[int, str]:
        """The exit code and combined output of a script."""
        environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "XLA_FLAGS": self.xla_flags,
        }
        words = ["bash", "-euo", "pipefail", "-c", script]
        done = subprocess.run(
            words, cwd=self.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        return done.returncode, done.stdout


def assert_like(printed: str, shown: str, folder: Path, place: str) -> None:
    """Assert that the output matches what is shown, where a line ... stands for any lines."""
    printed, shown = normalized(printed.replace(str(folder), "/home/me/codegen_jax")), normalized(shown)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    matches = doctest.OutputChecker().check_output(shown, printed, flags)
    assert matches, f"{place} shows\n{shown}\nbut the output is\n{printed}"


def normalized(text: str) -> str:
    """Output without the parts that differ between machines, models and data; numbers become N."""
    text = re.sub(r"^codegen-jax: compiled .*\n", "", text, flags=re.MULTILINE)  # logged if it takes over a second
    text = re.sub(r'"completion": .*', '"completion": ...', text)
    text = re.sub(r"(-- document \d+\n).*", r"\1", text, flags=re.DOTALL)
    text = re.sub(r"ids, [0-9a-f]{16}", "ids, N", text)
    text = re.sub(r"\b(document|line|shard)s\b", r"\1", text)  # singular or plural, depending on the number
    text = re.sub(r"^.*(, \d+ cores, )", r"CPU\1", text, flags=re.MULTILINE)
    return re.sub(r"\d[\d,.]*(e[+-]\d+)?", "N", text)


@pytest.fixture
def folder(tmp_path, texts) -> Path:
    """A small version of a reader's checkout: source files, raw shards and a GPT-2 tokenizer."""
    for name in ("configs", "scripts"):
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / ".venv").symlink_to(Path(sys.executable).parents[1])
    for project in ("python3.11", "my_project"):
        for number, text in enumerate(texts):
            package = tmp_path / project / f"package{number}"
            package.mkdir(parents=True)
            (package / "module.py").write_text(text)
            (package / "__init__.py").touch()
    for split in ("train", "validation"):
        for corpus in ("pile", "bigpython"):
            write_shard(tmp_path / corpus / split / "00.jsonl.zst", texts)
        write_code(tmp_path / "bigquery" / split / "00.jsonl", texts)
    (tmp_path / "gpt2").mkdir()
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(texts, vocab_size=400, special_tokens=["<|endoftext|>"])
    tokenizer.save_model(str(tmp_path / "gpt2"))
    return tmp_path


def write_code(shard: Path, texts: list[str]) -> None:
    """Write a shard of six languages, with one document for each reason to drop one."""
    shard.parent.mkdir(parents=True)
    documents = [(f"{number}{list(LANGUAGES)[number % 6]}", text) for number, text in enumerate(texts)]
    documents += [("wide.go", "x = 1;" * 40), ("long.js", "x\n" * 20 + "y" * 1001), ("again.py", texts[5])]
    metas = [{"pile_set_name": LANGUAGES[Path(path).suffix], "path": path} for path, _ in documents]
    lines = [json.dumps({"text": text, "meta": meta}) + "\n" for meta, (_, text) in zip(metas, documents)]
    shard.write_text("".join(lines))


def follow(document: str, folder: Path) -> None:
    """Run the blocks of a document that take less than a minute."""
    options = DOCUMENTS[document]
    text = "".join(block.text for block in blocks(document))
    entries = (*options.replaced, *options.slow, *options.skipped)
    unused = [entry for entry in entries if entry not in text]
    assert not unused, f"{document} does not contain {unused}"
    one_device = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1"  # the last flag wins
    reader = Reader(folder, options.replaced, one_device)
    for block in blocks(document):
        if block.begins_with((*options.slow, *options.skipped)):
            check_arguments(block, folder)
        else:
            reader.run(block)


def check_arguments(block: Block, folder: Path) -> None:
    """Check a block that is not run: its programs exist and accept its arguments."""
    scripts = [command for command, _ in commands(block)] if block.language == "console" else [block.text]
    for line in "\n".join(scripts).replace("\\\n", " ").splitlines() if block.language != "text" else ():
        program, *words = shlex.split(line, comments=True)
        if program != "codegen-jax":
            assert not program.startswith("scripts/") or (folder / program).exists(), f"{block.place}: {line}"
            continue
        arguments, overrides = make_parser().parse_known_args(words)
        refuse_unknown(overrides, arguments.parser, arguments.accepts_fields)
        if arguments.accepts_fields and arguments.config is not None:  # `plan --all` needs none
            load_config(folder / arguments.config, overrides)


def test_the_tutorial_the_readme_and_the_page_on_conversion_can_be_followed(folder):
    follow("docs/tutorial.md", folder)  # trains the model that the other two use
    follow("README.md", folder)
    follow("docs/conversion.md", folder)


def test_the_page_on_planning_can_be_followed(folder):
    follow("docs/planning.md", folder)


def test_docs_data_can_be_followed(folder):
    follow("docs/data.md", folder)


def test_docs_training_can_be_followed(folder, token_folder):
    (folder / "run.yaml").write_text(dump_config(tiny_run("run", token_folder, mesh=MeshConfig())))
    follow("docs/training.md", folder)
    assert [line["step"] for line in read_metrics(folder / "run") if "loss" in line] == [1, 2, 3, 4, 5, 6]


def test_docs_finetuning_starts_from_released_weights_and_ends_with_a_transformers_folder(folder, texts):
    released = peer(n_positions=2048)
    hub_id, tokenizer = "Salesforce/codegen-350M-mono", tiny_bpe(texts, vocab_size=290)
    save(released, folder / hub_id, "bin", tokenizer, buffers=True)
    # as in the released models: no pad token
    config = {"tokenizer_class": "CodeGenTokenizer"} | dict.fromkeys(
        ("bos_token", "eos_token", "unk_token"), "<|endoftext|>"
    )
    (folder / hub_id / "tokenizer_config.json").write_text(json.dumps(config))
    follow("docs/finetuning.md", folder)
    losses = [line["loss"] for line in read_metrics(folder / "runs/finetune_350m") if "loss" in line]
    assert losses[0] == pytest.approx(peer_loss(released, folder), rel=1e-5)
    finetuned = folder / "my-codegen"
    prompt = AutoTokenizer.from_pretrained(finetuned)("def f(", return_tensors="pt")
    model = AutoModelForCausalLM.from_pretrained(finetuned, dtype=torch.float32)
    theirs = model.generate(**prompt, max_new_tokens=8, do_sample=False, suppress_tokens=list(range(290, 300)))
    ours = codegen_jax.load(str(finetuned), dtype="float32")
    (completion,) = ours.complete(["def f("], max_new_tokens=8, temperature=0)
    assert len(completion.token_ids) > 2
    assert completion.token_ids == theirs[0, prompt["input_ids"].shape[1] :].tolist()[: len(completion.token_ids)]


def peer_loss(model, folder: Path) -> float:
    """transformers' loss on the run's first batch."""
    config = load_config(folder / "configs/finetune_350m.yaml", SMALL.split())
    data = dataclasses.replace(config.data, train=str(folder / "data/finetune/train"), validation="")
    sources, _ = open_sources(data)
    order = make_order(dataclasses.replace(config, data=data), sources)
    batch = np.asarray(Batches([sources[0].rows], order, batch_sharding(make_mesh(config.mesh)))(0))
    scores = torch.tensor(logits(model, batch[:, :-1]))
    return torch.nn.functional.cross_entropy(scores.flatten(0, 1), torch.tensor(batch[:, 1:]).flatten().long()).item()


SLOW = [
    block
    for document, options in DOCUMENTS.items()
    for block in blocks(document)
    if options.slow and block.begins_with(options.slow)
]


@pytest.mark.slow
@pytest.mark.parametrize("block", [pytest.param(block, id=block.place) for block in SLOW])
def test_a_slow_block_prints_the_output_shown(folder, block):
    Reader(folder, {}, xla_flags="").run(block)


@pytest.mark.slow
def test_the_demo_ends_with_completions_of_its_prompts(folder):
    """Runs the entire demo except the installation."""
    (folder / ".venv").unlink()
    (folder / ".venv/bin").mkdir(parents=True)
    for name, line in (("python", '[ "$2" = pip ] || exec python "$@"'), ("codegen-jax", 'exec codegen-jax "$@"')):
        (folder / ".venv/bin" / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / ".venv/bin" / name).chmod(0o755)
    code, printed = Reader(folder, {}, xla_flags="").shell("scripts/demo")
    assert code == 0 and "def __init__(self, name" in printed.partition("== completions")[2], printed
    code, printed = Reader(folder, {}, xla_flags="").shell("scripts/demo_finetune")
    change = re.search(r"^loss on bodies of held-out modules: .* after \((.*)%\)$", printed, re.MULTILINE)
    assert code == 0 and float(change[1]) < -10, printed
    code, printed = Reader(folder, {}, xla_flags="").shell("scripts/demo_finetune --adapter")
    share = re.search(r"^(\d+)% of the gain of runs/finetune_tiny_cpu$", printed, re.MULTILINE)
    assert code == 0 and int(share[1]) >= 80, printed
