"""Decoding against the training network: how rows grow and end, and that neither drafts nor other rows change them.

test_generate.py tests the completion of texts, with stops, streaming and draft models.
"""

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from codegen_jax.config import CodeGenConfig, MeshConfig
from codegen_jax.inference.decode_weights import arrange_params
from codegen_jax.inference.decoder import MERGE_AFTER
from codegen_jax.inference.engine import Admission, Engine, Network
from codegen_jax.inference.programs import (
    CHUNK,
    Program,
    decode_round,
    empty_chunk,
    insert,
    prefill,
    slots_for,
    take_rows,
)
from codegen_jax.inference.request import SamplingParams
from codegen_jax.model.codegen import init_params, module
from codegen_jax.sharding import make_mesh
from tests.runs import devices

CONFIG = CodeGenConfig(1, 32, 4, 4, vocab_size=40, n_positions=128, init="huggingface", dtype="float32")
VOCAB, NEVER = 37, -1  # ids 37 to 39 have no token; no id is -1
PROMPTS = [[3, 1, 4, 1, 5], [9, 2, 6]]
GREEDY = SamplingParams(temperature=0, max_new_tokens=8)


class Model:
    """A network with random weights, its scores, and tables that decode with it."""

    def __init__(self, config=CONFIG, seed=0, spread=10):
        self.config = config
        self.params = jax.tree.map(lambda p: spread * p, init_params(config, seed=seed))
        self.weights = jax.jit(partial(arrange_params, config=config, groups=1))(self.params)
        self.forward = jax.jit(lambda params, tokens: module(config, params)(tokens))

    def logits(self, ids):
        """Logits of the next token, from one pass over the whole sequence."""
        padded = np.array([ids + [0] * (self.config.n_positions - len(ids))])
        return np.array(self.forward(self.params, padded)[0, len(ids) - 1])

    def scores(self, ids):
        """Logits [V] for ids with a token."""
        return self.logits(ids)[:VOCAB]

    def greedy(self, ids, params=GREEDY, end=NEVER):
        """The new tokens, by the definitions of the settings."""
        new = []
        while len(new) < params.max_new_tokens:
            scores, seen, count = self.scores(ids + new), np.unique(ids + new), np.bincount(new, minlength=VOCAB)
            for id, bias in params.logit_bias.items():
                scores[id] += bias
            penalty = params.repetition_penalty
            scores[seen] = np.where(scores[seen] > 0, scores[seen] / penalty, scores[seen] * penalty)
            scores -= count * params.frequency_penalty + (count > 0) * params.presence_penalty
            if len(new) < params.min_new_tokens:
                scores[end] = -np.inf
            new.append(int(scores.argmax()))
            if new[-1] == end and not params.ignore_eos:
                break
        return new

    def engine(self, prompts=PROMPTS, params=GREEDY, *, num_draft_tokens=0, draft=None, end=NEVER, slots=128):
        """An engine with a row for each prompt, which is free if that is empty; `params` are of all rows or a list."""
        networks = [Network(model.config, model.weights) for model in (self, draft) if model]
        engine = Engine(
            networks,
            make_mesh(MeshConfig(1, 1, 1), devices(1)),
            vocab_size=VOCAB,
            end_ids=(end,),
            num_draft_tokens=num_draft_tokens,
        )
        params = params if isinstance(params, list) else [params] * len(prompts)
        engine.resize([None] * len(prompts), slots)
        engine.update([], [admission(row, ids, params[row]) for row, ids in enumerate(prompts) if ids])
        return engine

    def round(self, ids, draft_tokens, params=GREEDY, *, end=NEVER, drafts=None):
        """The new tokens, chunk and rows after one round of a single row with these draft tokens.

        `drafts` is the number that the row may accept, which is any number by default.
        """
        rows, (past,) = self.engine([ids], params, num_draft_tokens=len(draft_tokens))._table
        rows = rows._replace(drafts_B=jnp.array([len(draft_tokens) if drafts is None else drafts], jnp.int32))
        program = Program(self.config, VOCAB, (end,), None, len(draft_tokens), params.adjusts_logits)
        one_round = jax.jit(decode_round, static_argnames="program")
        draft_tokens_BJ = jnp.array([draft_tokens], jnp.int32)
        chunk = empty_chunk(1, program)
        rows, _, chunk = one_round(self.weights, draft_tokens_BJ, rows, past, chunk, None, program=program)
        return rows.tokens_BS[0, len(ids) : rows.length_B[0]].tolist(), chunk, rows


class Grown(NamedTuple):
    """What rows grew by in some chunks; per row."""

    tokens: list[list[int]]
    logprobs: list[list[float]]
    proposed: np.ndarray
    accepted: np.ndarray
    done: np.ndarray


def admission(row, ids, params=GREEDY):
    """A request for a row; rows have different sample numbers."""
    return Admission(row, ids, len(ids), params, sample=row)


def grow(engine, *chunks):
    """Decode chunks of so many rounds; without any, until all rows have ended."""
    B = engine.rows
    grown = Grown([[] for _ in range(B)], [[] for _ in range(B)], np.zeros(B, int), np.zeros(B, int), np.zeros(B, bool))
    chunks = list(chunks or [CHUNK] * 100)
    while chunks and not grown.done.all():
        engine.dispatch(chunks.pop(0))
        chunk = engine.fetch()
        for row, count in enumerate(chunk.count_B):
            grown.tokens[row].extend(chunk.tokens_BC[row, :count].tolist())
            grown.logprobs[row].extend(chunk.logprobs_BC[row, :count].tolist())
        proposed, accepted = grown.proposed + chunk.proposed_B, grown.accepted + chunk.accepted_B
        grown = grown._replace(proposed=proposed, accepted=accepted, done=chunk.done_B)
    return grown


@pytest.fixture(scope="module")
def model():
    return Model()


@pytest.fixture(scope="module")
def repetitive():
    """A model that repeats a single token unless a penalty prevents it."""
    return Model(spread=3)


def test_each_row_gets_the_training_networks_tokens_up_to_its_limit(model):
    params = [replace(GREEDY, max_new_tokens=8), replace(GREEDY, max_new_tokens=5)]
    grown = grow(model.engine(params=params), CHUNK)
    assert grown.tokens == [model.greedy(PROMPTS[0])[:8], model.greedy(PROMPTS[1])[:5]]
    assert grown.done.all()


def test_decoding_in_several_calls_gives_the_same_tokens(model):
    whole = grow(model.engine(), CHUNK)
    engine = model.engine()
    first = grow(engine, 3)
    assert [len(new) for new in first.tokens] == [3, 3] and not first.done.any()
    rest = grow(engine, CHUNK)
    assert [a + b for a, b in zip(first.tokens, rest.tokens)] == whole.tokens


@pytest.mark.parametrize("right", [0, 1, 2, 3])
def test_a_round_yields_one_token_more_than_the_draft_tokens_accepted_before_the_first_mismatch(model, right):
    true = model.greedy(PROMPTS[0])
    draft_tokens = true[:3]
    if right < 3:
        draft_tokens[right] = (draft_tokens[right] + 1) % VOCAB  # later draft tokens are right, but do not count
    new, chunk, _ = model.round(PROMPTS[0], draft_tokens)
    assert new == true[: right + 1]
    assert (chunk.proposed_B.item(), chunk.accepted_B.item()) == (3, right)


@pytest.mark.parametrize("drafts", [0, 1, 2])
def test_a_row_accepts_no_more_draft_tokens_than_it_wants(model, drafts):
    true = model.greedy(PROMPTS[0])
    new, chunk, _ = model.round(PROMPTS[0], true[:3], drafts=drafts)
    assert new == true[: drafts + 1]
    assert (chunk.proposed_B.item(), chunk.accepted_B.item()) == (drafts, drafts)


def test_a_round_stops_at_the_limit_even_if_more_draft_tokens_match(model):
    true = model.greedy(PROMPTS[0])
    new, chunk, rows = model.round(PROMPTS[0], true[:3], replace(GREEDY, max_new_tokens=2))
    assert new == true[:2] and chunk.done_B.item() and rows.done_B.item()


def test_eos_among_accepted_draft_tokens_ends_the_row_unless_it_is_ignored(model):
    true = model.greedy(PROMPTS[0])
    assert len(set(true[:3])) == 3
    new, chunk, rows = model.round(PROMPTS[0], true[:3], end=true[1])
    assert new == true[:2] and chunk.done_B.item() and rows.done_B.item()
    new, chunk, _ = model.round(PROMPTS[0], true[:1], end=true[2])
    assert new == true[:2] and not chunk.done_B.item()
    new, chunk, _ = model.round(PROMPTS[0], true[:3], replace(GREEDY, ignore_eos=True), end=true[1])
    assert new == true[:4] and not chunk.done_B.item()


def test_an_ended_or_free_row_does_not_change(model):
    params = [replace(GREEDY, max_new_tokens=1), replace(GREEDY, max_new_tokens=20), GREEDY]
    engine = model.engine([*PROMPTS, PROMPTS[0]], params, num_draft_tokens=2)
    engine.update([2], [])
    first = grow(engine, 1)
    assert first.done.tolist() == [True, False, True]
    before = jax.device_get(engine._table.rows)
    rest = grow(engine)
    after = jax.device_get(engine._table.rows)
    assert rest.tokens[0] == rest.tokens[2] == []
    assert first.tokens[1] + rest.tokens[1] == model.greedy(PROMPTS[1], params[1])
    assert rest.proposed[0] == rest.accepted[0] == rest.proposed[2] == 0 < rest.proposed[1]
    assert after.length_B[[0, 2]].tolist() == before.length_B[[0, 2]].tolist() == [len(PROMPTS[0]) + 1, 1]


def test_a_draft_token_counts_as_seen_for_the_tokens_after_it(repetitive):
    ids, params = PROMPTS[0] + [7, 36, 10], replace(GREEDY, repetition_penalty=2.0)
    true = repetitive.greedy(ids, params)[:4]
    assert repetitive.greedy(ids)[:2] == [true[0], true[0]] and true[0] not in [*ids, *true[1:]]
    new, chunk, _ = repetitive.round(ids, true[:3], params)
    assert new == true and chunk.accepted_B.item() == 3


@pytest.mark.parametrize("penalty", ["presence_penalty", "frequency_penalty"])
def test_a_draft_token_counts_as_part_of_the_completion_for_the_tokens_after_it(repetitive, penalty):
    ids, params = PROMPTS[0] + [7, 36, 10], replace(GREEDY, **{penalty: 1.5})
    true, plain = repetitive.greedy(ids, params)[:4], repetitive.greedy(ids)
    assert plain[0] == plain[1] == true[0] and true[1] in ids  # in the prompt, which does not count
    new, chunk, _ = repetitive.round(ids, true[:3], params)
    assert new == true and chunk.accepted_B.item() == 3


@pytest.mark.parametrize("temperature", [0, 0.5])
@pytest.mark.parametrize("spread", [3, 2.5])  # the draft is the model itself, or slightly different
def test_a_draft_model_does_not_change_tokens_under_a_repetition_penalty(repetitive, spread, temperature):
    params = SamplingParams(temperature=temperature, top_p=1.0, repetition_penalty=2.0, max_new_tokens=20)
    expected = [repetitive.greedy(ids, params) for ids in PROMPTS]
    if temperature:
        expected = grow(repetitive.engine(params=params)).tokens
    grown = grow(repetitive.engine(params=params, num_draft_tokens=2, draft=Model(spread=spread)))
    assert grown.tokens == expected
    assert 0 < grown.accepted.sum() < grown.proposed.sum()


END = 2  # the repetitive model's fourth token, and those after it
SETTINGS = {
    "presence": dict(presence_penalty=1.5),
    "a reward for presence": dict(presence_penalty=-2.0),
    "frequency": dict(frequency_penalty=0.5),
    "all penalties": dict(repetition_penalty=1.3, presence_penalty=0.3, frequency_penalty=0.2),
    "bias": dict(logit_bias={11: 0.5, 5: 1.0, END: -1.0}),
    "bias and penalties": dict(logit_bias={11: 2.0, 5: 1.0}, repetition_penalty=1.5, frequency_penalty=0.5),
    "minimum": dict(min_new_tokens=6, ignore_eos=False),
    "end as soon as allowed": dict(min_new_tokens=6, ignore_eos=False, logit_bias={END: 50.0}),
    "minimum equal to the maximum": dict(min_new_tokens=24, ignore_eos=False),
    "end": dict(ignore_eos=False),
    "nothing, past the end": dict(),
}


@pytest.fixture(scope="module")
def cases(repetitive):
    """Params by name, and the tokens that each gives; no two are equal."""
    plain = SamplingParams(temperature=0, max_new_tokens=24, ignore_eos=True)
    params = {name: replace(plain, **settings) for name, settings in SETTINGS.items()}
    expected = {name: repetitive.greedy(PROMPTS[0], p, END) for name, p in params.items()}
    assert len(set(map(tuple, expected.values()))) == len(expected)
    return params, expected


@pytest.mark.parametrize("num_draft_tokens", [0, 3])
@pytest.mark.parametrize("name", SETTINGS)
def test_greedy_rows_follow_the_definitions_of_their_settings(repetitive, cases, name, num_draft_tokens):
    params, expected = cases
    grown = grow(repetitive.engine(PROMPTS[:1], params[name], num_draft_tokens=num_draft_tokens, end=END))
    assert grown.tokens == [expected[name]]


@pytest.mark.parametrize("num_draft_tokens", [0, 3])
def test_rows_with_different_settings_share_a_table(repetitive, cases, num_draft_tokens):
    params, expected = cases
    prompts = PROMPTS[:1] * len(params)
    grown = grow(repetitive.engine(prompts, list(params.values()), num_draft_tokens=num_draft_tokens, end=END))
    assert dict(zip(params, grown.tokens)) == expected
    assert num_draft_tokens == 0 or 0 < grown.accepted.sum() < grown.proposed.sum()


@pytest.mark.parametrize("num_draft_tokens", [0, 3])
def test_a_row_has_the_same_bits_whatever_the_other_rows_of_its_table(repetitive, num_draft_tokens):
    params = [
        SamplingParams(temperature=0, max_new_tokens=40, logprobs=1),
        SamplingParams(temperature=0.7, max_new_tokens=40, logprobs=1, seed=3),
        SamplingParams(temperature=1.5, top_p=1.0, max_new_tokens=20, frequency_penalty=0.5, logprobs=2),
        SamplingParams(temperature=1.5, top_k=5, max_new_tokens=33, logit_bias={5: 3.0}, logprobs=2),
    ]
    prompts = [PROMPTS[0], PROMPTS[1], PROMPTS[0], PROMPTS[0] * 4]
    grown = grow(repetitive.engine(prompts, params, num_draft_tokens=num_draft_tokens))
    for row, ids in enumerate(prompts):
        free = [ids if other == row else [] for other in range(len(prompts))]
        alone = grow(repetitive.engine(free, params, num_draft_tokens=num_draft_tokens))
        assert alone.tokens[row] == grown.tokens[row]
        assert alone.logprobs[row] == grown.logprobs[row]


@pytest.mark.parametrize("num_draft_tokens", [0, 3])
def test_a_chunk_is_what_the_rows_grew_by_with_the_models_logprobs(repetitive, num_draft_tokens):
    params = SamplingParams(temperature=0.5, max_new_tokens=20, repetition_penalty=1.2, logprobs=2)
    engine = repetitive.engine(params=params, num_draft_tokens=num_draft_tokens)
    length_B = list(map(len, PROMPTS))
    for rounds in (1, 4, CHUNK):
        engine.dispatch(rounds)
        chunk, rows = engine.fetch(), jax.device_get(engine._table.rows)
        for row, count in enumerate(chunk.count_B):
            ids, before = rows.tokens_BS[row, : rows.length_B[row]].tolist(), length_B[row]
            assert chunk.tokens_BC[row, :count].tolist() == ids[before:]
            for place, length in enumerate(range(before, len(ids))):
                expected_V = log_softmax(repetitive.logits(ids[:length]))
                likeliest = np.argsort(-expected_V)[:2]
                np.testing.assert_allclose(chunk.logprobs_BC[row, place], expected_V[ids[length]], atol=1e-4)
                np.testing.assert_array_equal(chunk.top_ids_BCN[row, place], likeliest)
                np.testing.assert_allclose(chunk.top_logprobs_BCN[row, place], expected_V[likeliest], atol=1e-4)
        length_B = rows.length_B.tolist()
        assert chunk.done_B.tolist() == rows.done_B.tolist()
    assert chunk.done_B.all()


LONG = replace(CONFIG, n_layer=2, n_positions=256)


@pytest.mark.parametrize(("dtype", "num_draft_tokens"), [("float32", 0), ("bfloat16", 0), ("float32", 3)])
def test_tokens_and_logprobs_have_the_same_bits_wherever_chunks_end(dtype, num_draft_tokens):
    model = Model(replace(LONG, dtype=dtype))
    params = SamplingParams(temperature=0.8, max_new_tokens=100, logprobs=1)
    engine = partial(model.engine, params=params, num_draft_tokens=num_draft_tokens)
    whole = grow(engine())
    parts = grow(engine(), 1, 5, 32, 7, 2, 31, 1, 1, 11, 32)
    assert [len(new) for new in whole.tokens] == [100, 100] and parts.done.all()
    assert parts.tokens == whole.tokens
    assert parts.logprobs == whole.logprobs


def test_recent_tokens_move_to_the_cache_when_a_row_has_enough_of_them():
    model = Model(LONG)
    engine = model.engine(params=SamplingParams(temperature=0, max_new_tokens=100, logprobs=1))
    grown, length_B = 0, np.array(list(map(len, PROMPTS)))
    for rounds in (31, 1, 1, 31, 1, 30):
        grow(engine, rounds)
        grown += rounds
        rows, (past,) = jax.device_get(engine._table)
        # a round processes the token before the one that it adds, and moves tokens before that
        moved = (grown - 1) // MERGE_AFTER * MERGE_AFTER
        assert past.base_B.tolist() == (length_B - 1 + moved).tolist()
        for row, base in enumerate(past.base_B):
            expected = prefill(model.weights, rows.tokens_BS[row : row + 1], config=LONG)
            for (keys, values), (keys_1HKT, values_1HTK) in zip(past.cache, expected):
                np.testing.assert_allclose(keys[row, ..., :base], keys_1HKT[0, ..., :base], rtol=1e-3, atol=1e-3)
                np.testing.assert_allclose(values[row, :, :base], values_1HTK[0, :, :base], rtol=1e-3, atol=1e-3)


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
    assert model.greedy([3])[:5] == [4, 5, 6, 7, 8] and model.greedy([30])[:2] == [30, 30]
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
    grown = grow(counting.engine([ids], num_draft_tokens=2), 1)
    assert grown.tokens == [counting.greedy(ids)[:3]]
    assert grown.accepted.item() == 2


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_only_ids_with_a_token_are_sampled_including_the_last(temperature):
    model = Model()
    bias_V = jnp.zeros(40).at[VOCAB - 1].set(1e6).at[VOCAB:].set(2e6)
    model.weights = model.weights._replace(others=model.weights.others | {"head_bias": bias_V})
    grown = grow(model.engine(params=SamplingParams(temperature=temperature, max_new_tokens=3)))
    assert grown.tokens == [[VOCAB - 1] * 3] * 2


@pytest.mark.parametrize("num_draft_tokens", [0, 2])
def test_reordered_and_duplicated_rows_with_more_slots_continue_unchanged(model, num_draft_tokens):
    engine = model.engine(params=replace(GREEDY, max_new_tokens=40), num_draft_tokens=num_draft_tokens)
    before = grow(engine, 2).tokens
    engine.resize([1, 0, 1], 256)
    after = grow(engine).tokens
    assert engine._table.rows.tokens_BS.shape == (3, 256)
    first, second = (model.greedy(ids, replace(GREEDY, max_new_tokens=40)) for ids in PROMPTS)
    assert [before[old] + new for old, new in zip([1, 0, 1], after)] == [second, first, second]


def test_a_request_that_takes_over_a_row_leaves_the_others_unchanged(model):
    params, biased = replace(GREEDY, max_new_tokens=40), replace(GREEDY, logit_bias={28: -100.0})
    engine = model.engine(params=[replace(params, logit_bias={6: 100.0}), params])
    before = grow(engine, 20).tokens[1]
    engine.update([0], [admission(0, [7, 7, 8], biased)])
    grown = grow(engine)
    assert grown.tokens[0] == model.greedy([7, 7, 8], biased) != model.greedy([7, 7, 8])
    assert before + grown.tokens[1] == model.greedy(PROMPTS[1], params)


@pytest.mark.parametrize("mesh", [MeshConfig(1, 1, 1), MeshConfig(4, 1, 1), MeshConfig(2, 2, 2)])
def test_insert_and_take_rows_equal_assignment_and_indexing(mesh):
    mesh = make_mesh(mesh, devices(mesh.data * mesh.fsdp * mesh.tensor))
    rng = np.random.default_rng(0)
    random = lambda *shape: rng.normal(size=shape).astype(np.float32)
    keys, values, new_keys, new_values = random(8, 4, 2, 6), random(8, 4, 6, 2), random(3, 4, 2, 5), random(3, 4, 5, 2)
    other, new_other = (-values.mT, -values), (2 * new_values.mT, 2 * new_values)
    index_B = np.array([7, 0, 0, 3, 2, 1, 6, 5])
    with jax.set_mesh(mesh):
        layer_cache = take_rows((keys, values), np.arange(8))  # sharded
        prompts, rows = np.array([0, 2, 1, 2, 0]), np.array([5, 0, 7, 3, 1])
        cache = (layer_cache, take_rows(other, np.arange(8)))
        cache = insert(cache, ((new_keys, new_values), new_other), prompts, rows, np.int32(4))  # not the last one
        layer_cache, other_cache = cache
        for prompt, row in zip(prompts[:4], rows[:4]):
            keys[row, ..., :5], values[row, :, :5] = new_keys[prompt], new_values[prompt]
            other[1][row, :, :5] = new_other[1][prompt]
        np.testing.assert_array_equal(other_cache[1], other[1])
        np.testing.assert_array_equal(layer_cache[0], keys)
        np.testing.assert_array_equal(layer_cache[1], values)
        wider = take_rows(layer_cache, index_B, slots=9)
        shorter = take_rows(layer_cache, index_B, slots=4)
    np.testing.assert_array_equal(wider[0], np.pad(keys[index_B], [(0, 0)] * 3 + [(0, 3)]))
    np.testing.assert_array_equal(wider[1], np.pad(values[index_B], [(0, 0)] * 2 + [(0, 3), (0, 0)]))
    np.testing.assert_array_equal(shorter[0], keys[index_B][..., :4])
    np.testing.assert_array_equal(shorter[1], values[index_B][:, :, :4])


@pytest.mark.parametrize("num_draft_tokens", [0, 4])
def test_slots_have_room_for_a_round_and_come_in_few_sizes(num_draft_tokens):
    sizes = [slots_for(length, num_draft_tokens) for length in range(1, 5000)]
    needed = [length + num_draft_tokens + 1 for length in range(1, 5000)]
    assert all(count <= size < 128 + 1.25 * count for size, count in zip(sizes, needed))
    for power in (1024, 2048):
        assert len({size for size in sizes if power < size <= 2 * power}) == 4


@pytest.mark.parametrize("num_draft_tokens", [0, 2])
def test_rows_may_grow_until_only_one_round_fits_into_their_slots(model, num_draft_tokens):
    length = 128 - num_draft_tokens - 1
    assert slots_for(length, num_draft_tokens) == 128
    params = [replace(GREEDY, max_new_tokens=length - len(ids)) for ids in PROMPTS]
    grown = grow(model.engine(params=params, num_draft_tokens=num_draft_tokens, slots=128))
    assert grown.tokens == [model.greedy(ids, p) for ids, p in zip(PROMPTS, params)]
