"""Plans for decoding, made with the real TPU compiler."""

import pytest

from codegen_jax.config import CodeGenConfig
from codegen_jax.errors import UserError
from codegen_jax.planning.decode_plan import plan_decode
from codegen_jax.planning.slices import parse_slice

pytest.importorskip("libtpu", reason="the TPU compiler; pip install libtpu")

CONFIG = CodeGenConfig(4, 1024, 16, 64, vocab_size=51200)


def make(rows=1, tensor=None, quantize=None, config=CONFIG, new=128):
    return plan_decode(
        config,
        parse_slice("v4-8"),
        rows=rows,
        prompt_tokens=128,
        max_new_tokens=new,
        tensor=tensor,
        quantize=quantize,
    )


def test_each_chip_stores_its_share_of_weights_and_cache():
    whole, shared, int8 = make(rows=4, tensor=1), make(rows=4, tensor=4), make(rows=4, tensor=4, quantize="int8")
    embedding = 2 * CONFIG.vocab_size * CONFIG.n_embd
    assert whole.weights_bytes == pytest.approx(2 * CONFIG.n_params - embedding, rel=0.01)
    assert shared.weights_bytes == pytest.approx(whole.weights_bytes / 4, rel=0.01)
    assert int8.weights_bytes == pytest.approx(shared.weights_bytes / 2, rel=0.01)
    # with 4 rows on 4 chips, each chip has one row, or a quarter of the heads of every row
    cache = 2 * CONFIG.n_layer * 4 * CONFIG.n_embd * whole.slots * 2
    assert whole.cache_bytes == shared.cache_bytes == cache // 4
    assert shared.weights_bytes < shared.peak_bytes < shared.available_bytes


def test_decoding_is_not_faster_than_reading_the_weights():
    plan = make(rows=4, tensor=1)
    assert 0.3 < plan.mbu < 1  # a single row on the vector unit reached 0.2
    assert plan.bound_seconds == (plan.weights_bytes + plan.cache_bytes) / 1228e9
    assert f"MBU {plan.mbu:.0%}" in str(plan)


def test_rows_that_do_not_divide_evenly_are_rejected():
    with pytest.raises(UserError, match=r"rows: must be a multiple of 2, the number of groups of 2 chip\(s\), got 3"):
        make(rows=3, tensor=2)


def test_a_model_that_does_not_fit_is_rejected_with_one_message():
    large = CodeGenConfig(60, 8192, 64, 64, vocab_size=51200)
    message = r"does not fit: needs at least [\d.]+ GiB per chip, but only 30.75 GiB are available; use fewer rows"
    with pytest.raises(UserError, match=message):
        make(config=large, rows=4, tensor=1)
