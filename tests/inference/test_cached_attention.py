"""The attention of decoding: XLA's and the Pallas kernel's against the definition, in NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codegen_jax.config import CodeGenConfig, MeshConfig
from codegen_jax.inference import cached_attention as attention
from codegen_jax.inference.decoder import MERGE_AFTER
from codegen_jax.model.precision import products_of
from tests.inference.test_generator import make, with_draft

S, R = 256, 36
in_kernel = partial(attention.kernel, interpret=True)


def arguments(T, head_dim, dtype, seed=0):
    """Three rows: one with all slots free, one with some tokens, and one with a full cache."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: jnp.array(rng.normal(size=(3, 2, *shape)), dtype)
    pair = lambda slots: (normal(head_dim, slots), normal(slots, head_dim))
    base_B, first_B = jnp.array([0, 77, S], jnp.int32), jnp.array([0, 77 + R - T, S + 11], jnp.int32)
    return normal(T, head_dim), pair(T), pair(S), pair(R), base_B, first_B


def definition(q, new, cached, recent, base_B, first_B):
    """Attention of each query to the tokens up to its own, in float64; they are in one sequence per row."""
    q, *arrays = (np.array(x, np.float64) for x in (q, *new, *cached, *recent))
    new_keys, new_values, keys, values, recent_keys, recent_values = arrays
    out = np.zeros(q.shape)
    for b, (base, first) in enumerate(zip(base_B.tolist(), first_B.tolist())):
        old = first - base
        k = np.concatenate([keys[b, ..., :base], recent_keys[b, ..., :old], new_keys[b]], axis=-1)
        v = np.concatenate([values[b, :, :base], recent_values[b, :, :old], new_values[b]], axis=-2)
        for t in range(q.shape[2]):
            seen = first + t + 1
            scores = np.einsum("hk,hks->hs", q[b, :, t], k[..., :seen]) / np.sqrt(q.shape[-1])
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            out[b, :, t] = np.einsum("hs,hsk->hk", weights / weights.sum(-1, keepdims=True), v[:, :seen])
    return out


@pytest.mark.parametrize("attend", [attention.products, in_kernel], ids=["xla", "kernel"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("T", [1, 4])
def test_a_query_attends_to_the_cache_and_to_recent_tokens_up_to_its_own(T, dtype, attend):
    inputs = arguments(T, 128, dtype)
    with products_of(jnp.dtype(dtype)):
        actual, _ = jax.jit(attend)(*inputs)
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    np.testing.assert_allclose(np.float64(actual), definition(*inputs), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("T", [1, 4])
def test_new_tokens_are_written_exactly_and_nothing_else_changes(T, dtype):
    q, new, cached, recent, base_B, first_B = arguments(T, 128, dtype)
    expected = [np.array(x) for x in recent]
    for b, slot in enumerate((first_B - base_B).tolist()):
        expected[0][b, :, :, slot : slot + T] = new[0][b]
        expected[1][b, :, slot : slot + T] = new[1][b]
    for attend in (attention.products, in_kernel):
        with products_of(q.dtype):
            _, written = jax.jit(attend)(q, new, cached, recent, base_B, first_B)
        for actual, wanted in zip(written, expected):
            np.testing.assert_array_equal(actual, wanted)


def test_a_row_in_the_kernel_has_the_same_bits_whatever_the_other_rows_hold():
    inputs, others = arguments(4, 128, "float32"), arguments(4, 128, "float32", seed=1)
    mixed = jax.tree.map(lambda mine, other: other.at[1].set(mine[1]), inputs, others)
    mixed = (*mixed[:4], jnp.array([200, 77, 5]), jnp.array([210, 77 + R - 4, 9]))
    for actual, expected in zip(*(jax.tree.leaves(jax.jit(in_kernel)(*x)) for x in (mixed, inputs))):
        np.testing.assert_array_equal(actual[1], expected[1])


@pytest.mark.parametrize(
    ("T", "head_dim", "slots", "in_kernel"),
    [(1, 256, 2048, True), (8, 128, 4096, True), (1, 80, 2048, False), (9, 256, 2048, False), (1, 256, 2176, False)],
)
def test_only_what_a_core_of_a_tpu_can_hold_is_attended_in_the_kernel(T, head_dim, slots, in_kernel, monkeypatch):
    used = []
    monkeypatch.setattr(attention, "device_kind", lambda: "TPU v4")
    monkeypatch.setattr(attention, "min_rows", lambda dtype: 8)
    monkeypatch.setattr(attention, "kernel", lambda q, new, cached, recent, *_: used.append(1) or (q, recent))
    shape = lambda *dims: jax.ShapeDtypeStruct((1, 2, *dims), jnp.float32)
    q, row = jax.ShapeDtypeStruct((1, T, 2, head_dim), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)
    pairs = [(shape(head_dim, n), shape(n, head_dim)) for n in (T, slots, R)]
    out, recent = jax.eval_shape(attention.cached_attention, q, *pairs, row, row)
    assert (out.shape, recent[0].shape) == (q.shape, (1, 2, head_dim, R))
    assert bool(used) == in_kernel


@pytest.mark.parametrize("draft", [None, "lookup"])
@pytest.mark.parametrize("axes", [(1, 1, 1), (2, 1, 2)])
def test_completions_with_the_kernel_are_those_of_xla_on_one_device_and_on_a_mesh(tokenizer, axes, draft, monkeypatch):
    config = CodeGenConfig(2, 256, 2, 8, vocab_size=600, n_positions=128, init="huggingface", dtype="float32")
    prompts = [[3, 1, 4, 1, 5], [9, 2, 6], [5, 3]]

    def complete():
        generator = with_draft(make(config, tokenizer, seed=3, mesh=MeshConfig(*axes)), draft)
        return generator.complete(prompts, temperature=0, max_new_tokens=MERGE_AFTER + 8, ignore_eos=True, logprobs=0)

    expected, used = complete(), []
    monkeypatch.setattr(attention, "device_kind", lambda: "TPU v4")
    monkeypatch.setattr(attention, "min_rows", lambda dtype: 8)
    monkeypatch.setattr(attention, "kernel", lambda *args: used.append(args) or in_kernel(*args))
    jax.clear_caches()  # of programs without the kernel
    actual = complete()
    jax.clear_caches()
    assert used
    assert [a.token_ids for a in actual] == [e.token_ids for e in expected]
    for a, e in zip(actual, expected):
        np.testing.assert_allclose(a.logprobs, e.logprobs, atol=1e-4)
