"""Whatever other requests do, a request gets bit for bit the tokens and log-probabilities that it gets alone."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codegen_jax.compilation import compilations
from codegen_jax.config import CodeGenConfig, MeshConfig
from codegen_jax.errors import UserError
from codegen_jax.inference.generator import Generator
from codegen_jax.inference.request import Request, SamplingParams
from codegen_jax.model.codegen import init_params
from codegen_jax.sharding import make_mesh
from codegen_jax.training.loop import train
from tests.runs import devices, tiny_run

CONFIG = CodeGenConfig(2, 32, 4, 4, vocab_size=520, n_positions=120, init="huggingface", dtype="float32")


def make(tokenizer, dtype="float32", axes=(1, 1, 1), draft=None, seed=3, config=CONFIG, **options):
    config = replace(config, dtype=dtype)
    params = jax.tree.map(lambda p: 6 * p, init_params(config, seed=seed))
    mesh = make_mesh(MeshConfig(*axes), devices(int(np.prod(axes))))
    model = Generator.of_params(config, params, tokenizer, mesh)
    if draft == "model":
        draft = make(tokenizer, dtype, axes, seed=4)
    return Generator(model.config, model.weights, tokenizer, mesh, max_rows=4, draft=draft, **options)


params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.0, 0.7, 1.5]),
    top_k=st.sampled_from([0, 5]),
    top_p=st.sampled_from([1.0, 0.9]),
    min_p=st.sampled_from([0.0, 0.05]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.3]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.4]),
    logit_bias=st.sampled_from([{}, {}, {7: 5.0, 400: -3.0}]),
    max_new_tokens=st.integers(1, 50),
    ignore_eos=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
    logprobs=st.just(2),
    num_draft_tokens=st.integers(1, 2),
)
arrivals = st.tuples(
    st.lists(st.integers(0, 511), min_size=1, max_size=60),  # the prompt
    params,
    st.integers(0, 30),  # the step at which the request arrives
    st.sampled_from([None, None, None, 0, 3, 20]),  # steps after which it is cancelled
    st.integers(-1, 1),  # its priority
)


def run(model, plan):
    """The tickets of the requests of `plan`, which arrive and are cancelled at its steps."""
    scheduler = model._driver_for([]).scheduler
    tickets, step = {}, 0
    while step <= max(arrival for _, _, arrival, *_ in plan) or scheduler.is_busy:
        for number, (prompt, params, arrival, cancelled, priority) in enumerate(plan):
            if step == arrival:
                request = Request(prompt=prompt, params=params, priority=priority)
                tickets[number] = model._ticket(scheduler, request, prompt)
                scheduler.submit(tickets[number])
            if cancelled is not None and step == arrival + cancelled:
                scheduler.cancel(tickets[number])
        scheduler.step()
        step += 1
    return [tickets[number] for number in range(len(plan))]


@pytest.mark.parametrize(
    ("dtype", "axes", "draft"),
    [
        pytest.param("float32", (1, 1, 1), None, marks=pytest.mark.slow),
        ("bfloat16", (1, 1, 1), "lookup"),
        ("float32", (2, 1, 1), "model"),
        ("bfloat16", (1, 1, 2), None),
    ],
)
def test_order_never_matters(tokenizer, dtype, axes, draft):
    model = make(tokenizer, dtype, axes, draft, fixed_table=True)
    model._driver_for([Request(prompt="x", params=SamplingParams(num_draft_tokens=2))])

    @settings(max_examples=6, deadline=None, derandomize=True, database=None)
    @given(st.lists(arrivals, min_size=3, max_size=7))
    def check(plan):
        for (prompt, params, *_), mixed in zip(plan, run(model, plan)):
            (alone,) = run(model, [(prompt, params, 0, None, 0)])
            assert mixed.is_done and mixed.error is None
            if mixed.reason == "cancelled":
                assert mixed.new == alone.new[: len(mixed.new)]
            else:
                assert (mixed.new, mixed.reason) == (alone.new, alone.reason)
            count = len(mixed.logprobs)
            assert mixed.logprobs == alone.logprobs[:count] and mixed.top_logprobs == alone.top_logprobs[:count]

    check()


def requests(count=12, **changes):
    rng = np.random.default_rng(0)
    return [
        Request(
            prompt=rng.integers(0, 511, rng.integers(1, 60)).tolist(),
            params=SamplingParams(
                **{"max_new_tokens": 40, "temperature": 1.0, "seed": n, "ignore_eos": True} | changes
            ),
        )
        for n in range(count)
    ]


def test_requests_that_wait_again_for_memory_get_the_same_tokens(tokenizer):
    config = replace(CONFIG, n_positions=250)
    roomy = make(tokenizer, config=config)
    engine = roomy._engine()
    small = make(tokenizer, config=config, max_kv_bytes=engine.kv_bytes(4, 128))  # enough for one of 250 tokens
    expected = roomy.run(requests(6, max_new_tokens=150))
    assert [c.token_ids for c in small.run(requests(6, max_new_tokens=150))] == [c.token_ids for c in expected]
    assert small._driver.scheduler.preempted > 0 == roomy._driver.scheduler.preempted
    with pytest.raises(UserError, match=r"max_kv_bytes: 0.00 GiB are too little for one request of .* tokens"):
        make(tokenizer, max_kv_bytes=engine.kv_bytes(1, 100)).run(requests(1))
    with pytest.raises(UserError, match=r"max_kv_bytes: 0.00 GiB are too little for 2 rows of 128 tokens"):
        make(tokenizer, max_kv_bytes=engine.kv_bytes(1, 128)).complete_turn(["x", "y"], max_new_tokens=9)
    with pytest.raises(UserError, match="prompts: between 1 and 4 are allowed, got 0"):
        roomy.complete_turn([])


def test_a_mixed_load_compiles_nothing_after_warmup(tokenizer):
    model = make(tokenizer, fixed_table=True)
    model.warmup(batch_size=4, prompt_tokens=60, max_new_tokens=40, temperature=0)
    before = len(compilations())
    mixed = [*requests(6), *requests(6, temperature=0), *requests(3, top_k=4, top_p=0.5, min_p=0.1, max_new_tokens=3)]
    assert len(model.run(mixed)) == 15
    assert compilations()[before:] == []


def test_a_table_that_changes_its_size_gives_the_same_tokens(tokenizer):
    fixed, free = make(tokenizer, fixed_table=True), make(tokenizer)
    expected = [completion.token_ids for completion in fixed.run(requests())]
    assert [completion.token_ids for completion in free.run(requests())] == expected


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "allowed"), [("float32", 0.001), ("bfloat16", 0.01)])
def test_sizes_change_only_tokens_that_are_about_as_likely_as_another(
    texts, tokenizer, token_folder, tmp_path, dtype, allowed
):
    devices(8)
    run, steps = tmp_path / "run", {"steps": 200, "eval_every": 1000}
    train(tiny_run(run, token_folder, model={"n_embd": 64}, optimizer={"decay_steps": 198}, training=steps))
    ids = [id for text in texts for id in tokenizer.encode(text)]
    params = SamplingParams(max_new_tokens=60, temperature=0, logprobs=2, ignore_eos=True)
    prompts = [ids[97 * n : 97 * n + 8 + n % 40] for n in range(100)]
    load = lambda rows=8, **options: Generator.load(run, dtype, max_rows=rows, **options)
    others = [load(), load(4), load(draft="lookup"), load(mesh=MeshConfig(8, 1, 1)), load(mesh=MeshConfig(4, 1, 2))]
    expected, *found = (
        model.run([Request(prompt=prompt, params=params) for prompt in prompts])
        for model in (load(fixed_table=True), *others)
    )
    for completions in found:
        compared, errors, margins = 0, [0.0], []
        for ours, theirs in zip(expected, completions):
            pairs = enumerate(zip(ours.token_ids, theirs.token_ids))
            same = next((n for n, (a, b) in pairs if a != b), None)
            compared += len(ours.token_ids) if same is None else same + 1
            errors += [abs(a - b) for a, b in zip(ours.logprobs[:same], theirs.logprobs[:same])]
            if same is not None:
                likeliest, next_likeliest = ours.top_logprobs[same].values()
                margins.append(likeliest - next_likeliest)
        assert len(margins) <= allowed * compared
        assert max(margins, default=0) <= 2 * max(errors) < 0.1  # the logits of both tokens may be wrong by that


@pytest.mark.parametrize("prompts", [1, 3])
def test_samples_of_a_prompt_share_a_prefill(tokenizer, prompts, monkeypatch):
    from codegen_jax.inference import programs

    model, prefilled = make(tokenizer), []
    real = programs.prefill
    monkeypatch.setattr(programs, "prefill", lambda *a, **k: prefilled.append(1) or real(*a, **k))
    texts = [f"def f{n}(x):\n    return x + {n}\n" * 5 for n in range(prompts)]  # too long to share with other prompts
    model.complete(texts, num_samples=9, max_new_tokens=5, temperature=1.0)
    assert len(prefilled) == prompts
