"""data show prints the tokens that a training step uses."""

import dataclasses
import re

import numpy as np
import pytest

from codegen_jax.config import MeshConfig, SourceConfig
from codegen_jax.data.batches import Batches
from codegen_jax.data.prepare import prepare
from codegen_jax.data.rows import ids_of, make_row
from codegen_jax.data.show import SEPARATOR, render, show
from codegen_jax.data.sources import make_order, open_sources
from codegen_jax.data.tokenizer import END_OF_TEXT
from codegen_jax.errors import UserError
from codegen_jax.sharding import make_mesh
from codegen_jax.training.step import batch_sharding
from tests.conftest import write_shard
from tests.peers import tiny_bpe
from tests.runs import tiny_run


def test_the_tokens_shown_are_those_the_step_trains_on(token_folder, tokenizer):
    config = tiny_run(tokens=token_folder, data={"skip_steps": [[2, 4]]})
    sources, _ = open_sources(config.data)
    batches = Batches([sources[0].rows], make_order(config, sources), batch_sharding(make_mesh(MeshConfig())))
    shown = list(show(config, step=3))
    assert len(shown) == 2 * config.training.batch_size
    for row, tokens in enumerate(ids_of(np.asarray(batches(2)))):
        header, text = shown[2 * row : 2 * row + 2]
        assert header.startswith(f"== step 3, row {row}: epoch 0, window ")
        tokens = tokens[tokens != tokenizer.eos_id].tolist()
        text = re.sub(rf"{re.escape(END_OF_TEXT)}{SEPARATOR}|\n?-- document \d+\n", "", text)
        assert text.replace(SEPARATOR, "") == tokenizer.decode(tokens)
    assert list(show(config, step=3, row=5)) == shown[10:12]


def test_tokens_and_documents_are_separated(tokenizer):
    ids = [*tokenizer.encode("a = 1"), tokenizer.eos_id, *tokenizer.encode("é🙂")]
    starts = np.array([False, *(id == tokenizer.eos_id for id in ids[:-1])])
    text = render(make_row(np.array(ids), np.ones_like(starts), starts), tokenizer, range(4, 6))
    first, second = text.split(f"{SEPARATOR}{END_OF_TEXT}{SEPARATOR}\n-- document 5\n")
    pieces = first.removeprefix("-- document 4\n").split(SEPARATOR)
    assert [tokenizer.decode([i]) for i in ids[: len(pieces)]] == pieces
    assert second == f"é{SEPARATOR}🙂{SEPARATOR}"  # the bytes of a character stay together


@pytest.mark.parametrize(("step", "row", "name"), [(0, None, "step: "), (1, 16, "row: "), (1, -1, "row: ")])
def test_a_step_or_row_that_does_not_exist_is_named(token_folder, step, row, name):
    with pytest.raises(UserError, match=name):
        list(show(tiny_run(tokens=token_folder), step, row))


def test_rows_of_a_mixture_name_their_source(token_folder):
    config = tiny_run(tokens=token_folder)
    sources = {name: SourceConfig(str(token_folder), 1) for name in "ab"}
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, train=None, sources=sources))
    headers = list(show(config, step=1))[::2]
    assert [header.split(": source ")[1][0] for header in headers].count("a") == 8


def test_an_eos_within_a_document_is_shown_as_a_boundary(tmp_path):
    tokenizer = tiny_bpe()
    shard = write_shard(tmp_path / "0.jsonl", ["a<|endoftext|>b" * 20])
    prepare([shard], str(tmp_path / "tokens"), tokenizer, special_tokens=True)
    shown = list(show(tiny_run(tokens=tmp_path / "tokens"), step=1, row=0))
    assert shown[1].startswith("-- document 0\n") and shown[1].count("-- document ") > 2
