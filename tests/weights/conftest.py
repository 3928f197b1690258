"""A small byte-level BPE tokenizer shared by the tests of weights."""

import pytest

from tests.peers import tiny_bpe


@pytest.fixture(scope="session")
def bpe(texts):
    return tiny_bpe(texts, vocab_size=290)
