"""Decoding rounds against the training network: which draft tokens are accepted, and where rows end.

test_generate.py tests the completion of texts, with stops, streaming and draft models.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codegen_jax.config import CodeGenConfig
from codegen_jax.inference.decode import CHUNK, Program, Rows, decode, decode_round, grow, prefill, slots_for, take_rows
from codegen_jax.inference.decode_weights import arrange_params
from codegen_jax.inference.network import Past, empty_cache
from codegen_jax.inference.options import Options
from codegen_jax.model.codegen import init_params, module

CONFIG = CodeGenConfig(1, 32, 4, 4, vocab_size=40, n_positions=64, init="huggingface", dtype="float32")
VOCAB, EOS = 37, 36  # ids 37 to 39 have no token
PROMPTS = [[3, 1, 4, 1, 5], [9, 2, 6]]
GREEDY = Options(temperature=0)


class Model:
    """A network with random weights, its logits, and its decoding rounds."""

    def __init__(self, config=CONFIG, seed=0, spread=10):
        self.config = config
        self.params = jax.tree.map(lambda p: spread * p, init_params(config, seed=seed))
        self.weights = jax.jit(partial(arrange_params, config=config, groups=1))(self.params)
        self.forward = jax.jit(lambda params, tokens: module(config, params)(tokens))

    def scores(self, ids):
        """Logits [V] of the next token, for ids with a token, from one pass over the whole sequence."""
        padded = np.array([ids + [0] * (64 - len(ids))])
        return np.array(self.forward(self.params, padded)[0, len(ids) - 1])[:VOCAB]

    def greedy(self, ids, count, penalty=1.0):
        new = []
        for _ in range(count):
            scores, seen = self.scores(ids + new), np.unique(ids + new)
            scores[seen] = np.where(scores[seen] > 0, scores[seen] / penalty, scores[seen] * penalty)
            new.append(int(scores.argmax()))
        return new

    def rows(self, prompts=PROMPTS, new=8, slots=None, num_draft_tokens=0, draft=None):
        B, slots = len(prompts), slots or slots_for(max(map(len, prompts)), num_draft_tokens)
        tokens_BS = np.zeros((B, slots), np.int32)
        for row, ids in enumerate(prompts):
            tokens_BS[row, : len(ids)] = ids
        length_B = np.array([len(ids) for ids in prompts], np.int32)
        cache = lambda model: prefill(model.weights, tokens_BS[:, :16], config=model.config, slots=slots)
        rows = Rows(
            tokens_BS=tokens_BS,
            length_B=length_B,
            prompt_B=length_B,
            limit_B=length_B + new,
            done_B=np.zeros(B, bool),
            seed_B=np.zeros(B, np.uint32),
            sample_B=np.arange(B, dtype=np.uint32),
            cache=cache(self),
            draft_cache=cache(draft) if draft else (),
            logprobs_BS=np.zeros((B, slots), np.float32),
            top_logprobs_BSN=np.zeros((B, slots, 2), np.float32),
            top_ids_BSN=np.zeros((B, slots, 2), np.int32),
            proposed_B=np.zeros(B, np.int32),
            accepted_B=np.zeros(B, np.int32),
        )
        return jax.tree.map(jnp.array, rows)

    def decode(self, rows, rounds=CHUNK, options=GREEDY, num_draft_tokens=0, draft=None, eos=EOS):
        program = Program.of(
            options,
            self.config,
            vocab_size=VOCAB,
            end_ids=(eos,),
            draft=draft.config if draft else None,
            num_draft_tokens=num_draft_tokens,
        )
        draft_weights = draft.weights if draft else None
        return decode(self.weights, draft_weights, rows, options.scalars(), np.int32(rounds), program=program)

    def round(self, rows, draft_tokens, options=GREEDY, eos=EOS):
        """One round in which every row has these draft tokens."""
        draft_tokens_BJ = jnp.array([draft_tokens] * len(rows.done_B), jnp.int32)
        program = Program.of(options, self.config, vocab_size=VOCAB, end_ids=(eos,), num_draft_tokens=len(draft_tokens))
        recent = empty_cache(self.config, len(rows.done_B), len(draft_tokens) + 2)
        past = Past(rows.cache, recent, rows.length_B - 1)
        one_round = jax.jit(decode_round, static_argnames="program")
        return one_round(self.weights, draft_tokens_BJ, rows, past, options.scalars(), program=program)[0]


@pytest.fixture(scope="module")
def model():
    return Model()


@pytest.fixture(scope="module")
def repetitive():
    """A model that repeats a single token unless a penalty prevents it."""
    return Model(spread=3)


def new_tokens(rows):
    """The tokens after the prompt in each row."""
    return [
        np.asarray(ids[prompt:length]).tolist()
        for ids, prompt, length in zip(rows.tokens_BS, rows.prompt_B, rows.length_B)
    ]


def test_each_row_gets_the_training_networks_tokens_up_to_its_limit(model):
    rows = model.decode(model.rows(new=8), eos=-1)
    assert new_tokens(rows) == [model.greedy(ids, 8) for ids in PROMPTS]
    assert rows.done_B.all()


def test_decoding_in_several_calls_gives_the_same_tokens(model):
    whole = model.decode(model.rows(new=8), eos=-1)
    rows = model.decode(model.rows(new=8), rounds=3, eos=-1)
    assert [len(new) for new in new_tokens(rows)] == [3, 3] and not rows.done_B.any()
    assert new_tokens(model.decode(rows, eos=-1)) == new_tokens(whole)


@pytest.mark.parametrize("right", [0, 1, 2, 3])
def test_a_round_yields_one_token_more_than_the_draft_tokens_accepted_before_the_first_mismatch(model, right):
    true = model.greedy(PROMPTS[0], 4)
    draft_tokens = true[:3]
    if right < 3:
        draft_tokens[right] = (draft_tokens[right] + 1) % VOCAB  # later draft tokens are right, but do not count
    rows = model.round(model.rows(PROMPTS[:1]), draft_tokens, eos=-1)
    assert new_tokens(rows) == [true[: right + 1]]
    assert (rows.proposed_B.item(), rows.accepted_B.item()) == (3, right)


def test_a_round_stops_at_the_limit_even_if_more_draft_tokens_match(model):
    true = model.greedy(PROMPTS[0], 4)
    rows = model.round(model.rows(PROMPTS[:1], new=2), true[:3], eos=-1)
    assert new_tokens(rows) == [true[:2]] and rows.done_B.item()


def test_eos_among_accepted_draft_tokens_ends_the_row(model):
    true = model.greedy(PROMPTS[0], 4)
    assert len(set(true[:3])) == 3
    rows = model.round(model.rows(PROMPTS[:1]), true[:3], eos=true[1])
    assert new_tokens(rows) == [true[:2]] and rows.done_B.item()
    assert not model.round(model.rows(PROMPTS[:1]), true[:1], eos=true[2]).done_B.item()


def test_an_ended_row_does_not_change(model):
    rows = model.rows()._replace(done_B=jnp.array([True, False]))
    after = model.decode(rows, num_draft_tokens=2, eos=-1)
    assert new_tokens(after) == [[], model.greedy(PROMPTS[1], 8)]
    assert after.proposed_B[0] == after.accepted_B[0] == 0 < after.proposed_B[1]


def test_a_draft_token_counts_as_seen_for_the_tokens_after_it(repetitive):
    ids, options = PROMPTS[0] + [7, 36, 10], Options(temperature=0, repetition_penalty=2.0)
    true = repetitive.greedy(ids, 4, penalty=2.0)
    assert repetitive.greedy(ids, 2) == [true[0], true[0]] and true[0] not in [*ids, *true[1:]]
    rows = repetitive.round(repetitive.rows([ids]), true[:3], options, eos=-1)
    assert new_tokens(rows) == [true] and rows.accepted_B.item() == 3


@pytest.mark.parametrize("temperature", [0, 0.5])
@pytest.mark.parametrize("spread", [3, 2.5])  # the draft is the model itself, or slightly different
def test_a_draft_model_does_not_change_tokens_under_a_repetition_penalty(repetitive, spread, temperature):
    draft, options = Model(spread=spread), Options(temperature=temperature, repetition_penalty=2.0)
    expected = [repetitive.greedy(ids, 20, penalty=2.0) for ids in PROMPTS]
    if temperature:
        expected = new_tokens(repetitive.decode(repetitive.rows(new=20), options=options, eos=-1))
    rows = repetitive.rows(new=20, num_draft_tokens=2, draft=draft)
    rows = repetitive.decode(rows, options=options, num_draft_tokens=2, draft=draft, eos=-1)
    assert new_tokens(rows) == expected
    assert 0 < rows.accepted_B.sum() < rows.proposed_B.sum()


@pytest.fixture(scope="module")
def counting():
    """A model that counts: t is followed by t + 1, except that 30 is followed by 30.

    The head matches the embedding of the preceding token, and the block adds nothing.
    """
    model = Model()
    zeros = {name: jnp.zeros_like(model.params["blocks"][name]) for name in ("attention_out", "fc_out", "fc_out_bias")}
    embedding_VD = np.random.default_rng(0).normal(size=(40, 32)).astype(np.float32)
    head_DV = np.roll(embedding_VD, 1, axis=0).T.copy()
    head_DV[:, 30] += embedding_VD[30]
    head_DV[:, 31] = 0
    model.params |= {"embedding": embedding_VD, "head": head_DV, "head_bias": np.zeros(40, np.float32)}
    model.params["blocks"] |= zeros
    model.weights = jax.jit(partial(arrange_params, config=CONFIG, groups=1))(model.params)
    assert model.greedy([3], 5) == [4, 5, 6, 7, 8] and model.greedy([30], 2) == [30, 30]
    return model


@pytest.mark.parametrize(
    "ids",
    [
        [3, 4, 5, 9, 3],  # the only earlier occurrence
        [2, 3, 4, 5, 9, 3, 7, 8, 2, 3],  # the longest match wins over a later, shorter one
        [3, 20, 21, 9, 3, 4, 5, 8, 3],  # the latest of equally long matches
        [1, 2, 3, 20, 21, 1, 2, 3, 4, 5, 1, 2, 3],  # the latest of equal matches of three tokens
        [3, 20, 21, 7, 3, 4, 5, 0, 3],  # a match does not extend to before the first token
        [30, 30, 30, 30, 30],  # only an earlier match is followed by enough tokens
    ],
)
def test_lookup_drafts_what_followed_the_longest_and_latest_match(counting, ids):
    rows = counting.decode(counting.rows([ids], num_draft_tokens=2), rounds=1, num_draft_tokens=2, eos=-1)
    assert new_tokens(rows) == [counting.greedy(ids, 3)]
    assert rows.accepted_B.item() == 2


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_only_ids_with_a_token_are_sampled_including_the_last(temperature):
    model = Model()
    bias_V = jnp.zeros(40).at[VOCAB - 1].set(1e6).at[VOCAB:].set(2e6)
    model.weights = model.weights._replace(others=model.weights.others | {"head_bias": bias_V})
    rows = model.decode(model.rows(new=3), options=Options(temperature=temperature), eos=-1)
    assert new_tokens(rows) == [[VOCAB - 1] * 3] * 2


def test_reordered_and_duplicated_rows_with_more_slots_continue_unchanged(model):
    rows = model.decode(model.rows(new=8), rounds=2, eos=-1)
    taken = grow(take_rows(rows, jnp.array([1, 0, 1])), slots=256)
    assert taken.tokens_BS.shape == (3, 256) and taken.logprobs_BS.shape == (3, 256)
    first, second = (model.greedy(ids, 8) for ids in PROMPTS)
    assert new_tokens(model.decode(taken, eos=-1)) == [second, first, second]


@pytest.mark.parametrize("num_draft_tokens", [0, 4])
def test_slots_have_room_for_a_chunk_and_come_in_few_sizes(num_draft_tokens):
    sizes = [slots_for(length, num_draft_tokens) for length in range(1, 5000)]
    chunk = CHUNK * (num_draft_tokens + 1)
    assert all(size >= length + chunk for length, size in enumerate(sizes, 1))
    assert all(size < 128 + 1.25 * (length + chunk + 2) for length, size in enumerate(sizes, 1))
    for power in (1024, 2048):
        assert len({size for size in sizes if power < size <= 2 * power}) == 4
