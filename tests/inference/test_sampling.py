"""Filters and penalties equal their definitions; sampled tokens have the probabilities that the settings define."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as runs
from hypothesis import strategies as st
from transformers import RepetitionPenaltyLogitsProcessor

from codegen_jax.inference.sampling import Settings, choose_token, filter_logits, penalize

LOGITS = np.log([0.4, 0.3, 0.2, 0.1])
OFF = dict(
    temperature=1.0,
    top_k=0,
    top_p=1.0,
    min_p=0.0,
    repetition_penalty=1.0,
    presence_penalty=0.0,
    frequency_penalty=0.0,
)
B, V = 4, 24

filtered, chosen, penalized = map(jax.jit, (filter_logits, choose_token, penalize))


def settings_of(*rows):
    """The settings of these rows, [B], or of one row, []; what a row does not name is off."""
    rows = [OFF | row for row in rows]
    columns = [np.array([row[name] for row in rows], np.int32 if name == "top_k" else np.float32) for name in OFF]
    return Settings(**dict(zip(OFF, columns)))


def row_of(settings, row):
    return jax.tree.map(lambda x: x[row], settings)


def frequencies(count=20_000, **options):
    settings = row_of(settings_of(options), 0)
    keys = jax.random.split(jax.random.key(0), count)
    ids = jax.jit(jax.vmap(lambda key: choose_token(jnp.array(LOGITS, jnp.float32), key, settings)))(keys)
    return np.bincount(ids, minlength=4) / count


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.4, 0.3, 0.2, 0.1]),
        ({"temperature": 0.5}, np.array([16, 9, 4, 1]) / 30),
        ({"top_k": 2}, [4 / 7, 3 / 7, 0, 0]),
        ({"top_p": 0.6}, [4 / 7, 3 / 7, 0, 0]),  # 0.4 alone is not enough
        ({"top_p": 0.75}, [4 / 9, 3 / 9, 2 / 9, 0]),
        ({"top_p": 1e-6}, [1, 0, 0, 0]),
        ({"top_k": 3, "top_p": 0.5}, [4 / 7, 3 / 7, 0, 0]),  # top_p applies to what top_k keeps
        ({"min_p": 0.6}, [4 / 7, 3 / 7, 0, 0]),  # at least 0.6 * 0.4
        ({"min_p": 0.6, "temperature": 2.0}, np.sqrt([4, 3, 2, 0]) / np.sqrt([4, 3, 2]).sum()),
        ({"temperature": 1e-4}, [1, 0, 0, 0]),
        ({"temperature": 0.0}, [1, 0, 0, 0]),
    ],
)
def test_samples_have_the_exact_probabilities(options, expected):
    # four standard errors of the largest probability
    np.testing.assert_allclose(frequencies(**options), expected, atol=4 * (0.25 / 20_000) ** 0.5)


def test_top_p_of_one_keeps_even_the_least_likely_id():
    # in float32 the mass before the last two is already 1
    kept = filter_logits(jnp.array([[0.0, -20, -40]]), settings_of({}))
    assert np.isfinite(kept).all()


def kept_by_sorting(logits_V, temperature, top_k, top_p, min_p):
    """Which ids of a row are kept, by sorting in float64; None if rounding to float32 could change that."""
    scaled_V = (logits_V / np.float32(temperature)).astype(float)
    descending_V = -np.sort(-scaled_V)
    if top_k:
        scaled_V[scaled_V < descending_V[min(top_k, V) - 1]] = -np.inf
    relative_V = np.exp(scaled_V - scaled_V.max())
    sorted_V = -np.sort(-relative_V)
    mass_V = np.cumsum(sorted_V) / sorted_V.sum()
    kept_V = np.isfinite(scaled_V) & (relative_V >= min_p)
    if top_p < 1:
        smallest_set = np.searchsorted(mass_V, top_p) + 1  # the first that has this mass
        kept_V &= relative_V >= sorted_V[smallest_set - 1]
        if np.any(np.abs(mass_V - top_p) < 1e-5):
            return None
    near_V = (np.abs(relative_V - min_p) < 1e-5) & (relative_V != min_p)
    return None if min_p > 0 and near_V.any() else kept_V


FRACTION = st.integers(1, 2**12).map(lambda n: n / 2**12)  # exact in float32
FILTERS = st.fixed_dictionaries(
    dict(
        temperature=st.sampled_from([1.0, 0.2, 0.01]) | FRACTION.map(lambda x: 4 * x),
        top_k=st.just(0) | st.integers(0, V + 8),
        top_p=st.just(1.0) | FRACTION,
        min_p=st.just(0.0) | FRACTION,
    )
)


@st.composite
def random_logits(draw):
    """Logits [B, V] with few or many different values, in a narrow or a wide range, some of them -inf."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    values, step = draw(st.sampled_from([2, 8, 1024])), draw(st.sampled_from([1 / 1024, 1 / 16, 1, 64]))
    logits_BV = (rng.integers(-values, values, (B, V)) * step).astype(np.float32)
    excluded_BV = rng.random((B, V)) < draw(st.sampled_from([0, 0.2, 0.9]))
    excluded_BV[:, 0] = False
    return np.where(excluded_BV, -np.inf, logits_BV)


def test_filters_keep_exactly_the_ids_that_sorting_keeps():
    counts = []

    @runs(max_examples=300, deadline=None, derandomize=True, database=None)
    @given(random_logits(), st.tuples(*[FILTERS] * B))
    def check(logits_BV, rows):
        result_BV = filtered(logits_BV, settings_of(*rows))
        for logits_V, result_V, row in zip(logits_BV, result_BV, rows):
            kept_V = kept_by_sorting(logits_V, **row)
            if kept_V is not None:
                scaled_V = logits_V / np.float32(row["temperature"])
                np.testing.assert_allclose(result_V, np.where(kept_V, scaled_V, -np.inf), rtol=1e-6)
                counts.append(kept_V.sum())

    check()
    assert len(counts) > 800 and len(set(counts)) > V / 2


MIXED = [
    {"temperature": 0.0},
    {"temperature": 0.8},
    {"temperature": 0.0, "top_k": 3, "top_p": 0.5},
    {"temperature": 1.5, "top_p": 0.9},
    {"temperature": 1.0, "top_k": 5},
    {"temperature": 3.0, "min_p": 0.2},
]


def test_greedy_and_sampled_rows_share_a_batch_and_each_gets_what_it_gets_alone():
    rng = np.random.default_rng(0)
    settings, keys = settings_of(*MIXED), jax.random.split(jax.random.key(1), (50, len(MIXED)))
    greedy = 0
    for logits_BV, keys_B in zip(rng.normal(size=(50, len(MIXED), 200), scale=2).astype(np.float32), keys):
        together = np.asarray(chosen(logits_BV, keys_B, settings))
        alone = [chosen(logits_BV[row], keys_B[row], row_of(settings, row)) for row in range(len(MIXED))]
        assert together.tolist() == [int(id) for id in alone]
        likeliest = logits_BV.argmax(1)
        assert together[0] == likeliest[0] and together[2] == likeliest[2]
        greedy += (together == likeliest).sum()
    assert greedy < 0.8 * 50 * len(MIXED)  # the sampled rows take other ids, too


def test_filtered_logits_of_a_row_have_the_same_bits_whatever_the_other_rows():
    logits_BV = np.random.default_rng(0).normal(size=(len(MIXED), 200), scale=2).astype(np.float32)
    rows = [row | {"temperature": row["temperature"] or 1.0} for row in MIXED]
    together = filtered(logits_BV, settings_of(*rows))
    for row in range(len(rows)):
        alone = filtered(logits_BV[row], row_of(settings_of(*rows), row))
        np.testing.assert_array_equal(together[row], alone)


def counted(rng):
    """Random logits [B, V], the ids of a prompt and of a completion, and how often each occurs in both and there."""
    logits_BV = rng.normal(size=(B, V), scale=3).astype(np.float32)
    prompt_BT, completion_BT = rng.integers(0, V, (B, 5)), rng.integers(0, V, (B, 12))
    count_BV = np.stack([np.bincount(ids, minlength=V) for ids in completion_BT])
    seen_BV = count_BV + np.stack([np.bincount(ids, minlength=V) for ids in prompt_BT]) > 0
    return logits_BV, np.concatenate([prompt_BT, completion_BT], 1), seen_BV, count_BV.astype(np.float32)


def test_the_repetition_penalty_equals_transformers():
    logits_BV, ids_BT, seen_BV, count_BV = counted(np.random.default_rng(0))
    penalties = [1.0, 1.3, 0.7, 2.0]
    ours = penalized(logits_BV, seen_BV, count_BV, settings_of(*({"repetition_penalty": p} for p in penalties)))
    for row, penalty in enumerate(penalties):
        processor, one = RepetitionPenaltyLogitsProcessor(penalty), slice(row, row + 1)
        theirs = processor(torch.LongTensor(ids_BT[one]), torch.FloatTensor(logits_BV[one]))
        np.testing.assert_allclose(ours[row], theirs[0], rtol=1e-6)


def test_presence_and_frequency_penalties_equal_openais_formula():
    logits_BV, _, seen_BV, count_BV = counted(np.random.default_rng(1))
    assert count_BV.max() > 1 and (seen_BV & (count_BV == 0)).any()  # the prompt does not count
    frequency_B, presence_B = np.array([0, 0.5, -1, 0.25]), np.array([0.75, 0, 1.5, -2])
    rows = [{"frequency_penalty": f, "presence_penalty": p} for f, p in zip(frequency_B, presence_B)]
    ours = penalized(logits_BV, seen_BV, count_BV, settings_of(*rows))
    expected = logits_BV - count_BV * frequency_B[:, None] - (count_BV > 0) * presence_B[:, None]
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)
