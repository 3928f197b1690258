"""Threads, asyncio tasks and plain calls that share a model get what each gets alone, and leave nothing behind."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

from codegen_jax.errors import UserError
from codegen_jax.inference.driver import Driver
from codegen_jax.inference.request import Request, SamplingParams
from tests.inference.test_engine import make

PROMPTS = [f"def f{n}(x):\n    return x + {n}" for n in range(6)]
OPTIONS = {"max_new_tokens": 12, "temperature": 1.0}


@pytest.fixture(scope="module")
def model(tokenizer):
    return make(tokenizer, fixed_table=True)


@pytest.fixture(scope="module")
def expected(model):
    return [model.complete([prompt], **OPTIONS)[0] for prompt in PROMPTS]


def test_threads_share_the_table(model, expected):
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda prompt: model.complete([prompt], **OPTIONS)[0], PROMPTS))
    assert found == expected


def test_tasks_share_the_table_with_each_other_and_with_threads(model, expected):
    async def streamed(prompt):
        return "".join([chunk async for chunk in model.stream_async(prompt, **OPTIONS)])

    async def everything():
        blocking = asyncio.to_thread(model.complete, PROMPTS, **OPTIONS)
        return await asyncio.gather(blocking, model.complete_async(PROMPTS, **OPTIONS), *map(streamed, PROMPTS))

    blocking, awaited, *texts = asyncio.run(everything())
    assert blocking == awaited == expected
    assert texts == [completion.completion for completion in expected]


def test_a_task_that_is_cancelled_or_stops_reading_frees_its_row(model, expected):
    long = {"max_new_tokens": 60, "temperature": 1.0, "ignore_eos": True}

    async def leave():
        task = asyncio.create_task(model.complete_async(["x"] * 4, **long))
        async for _ in model.stream_async("y", **long):
            break
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await model.complete_async(PROMPTS, **OPTIONS)

    assert asyncio.run(leave()) == expected
    assert not model._driver_for([]).scheduler.is_busy


def test_a_stream_that_is_closed_early_frees_its_row(model, expected, monkeypatch):
    inner, stream_steps = [], Driver.stream  # something else may refer to the inner generator
    monkeypatch.setattr(Driver, "stream", lambda *args: inner.append(stream_steps(*args)) or inner[-1])
    stream = model.stream("x", max_new_tokens=60, temperature=1.0, ignore_eos=True)
    next(stream)
    assert model._driver_for([]).scheduler.rows
    stream.close()
    assert not model._driver_for([]).scheduler.is_busy
    assert model.complete(PROMPTS, **OPTIONS) == expected


def test_an_interrupted_call_leaves_a_model_that_works(model, expected):
    def interrupt(number, completion):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.complete(PROMPTS, interrupt, **OPTIONS)
    assert not model._driver_for([]).scheduler.is_busy
    assert model.complete(PROMPTS, **OPTIONS) == expected


def test_progress_reports_each_completion_once(model, expected):
    seen = {}
    found = model.complete(PROMPTS, lambda number, completion: seen.update({number: completion}), **OPTIONS)
    assert seen == dict(enumerate(found)) and found == expected


def test_a_request_that_fails_does_not_disturb_others(model, expected):
    slow = SamplingParams(max_new_tokens=60, temperature=1.0, stop=r"(?s)(?:.|.)+(?<=\x00)", ignore_eos=True)
    good = [Request(prompt=prompt, params=SamplingParams(**OPTIONS)) for prompt in PROMPTS]
    seen = {}
    with pytest.raises(UserError, match=r"stop: .* took more than 1 second"):
        model.run([*good, Request(prompt="x = 1", params=slow)], lambda number, found: seen.update({number: found}))
    assert [seen[number] for number in range(len(good))] == expected


def test_a_deadline_ends_a_request_with_the_tokens_it_has(model):
    params = SamplingParams(max_new_tokens=100, temperature=1.0, ignore_eos=True)
    (late,) = model.run([Request(prompt="x", params=params, deadline=1e-6)])
    assert late.finish_reason == "deadline" and len(late.token_ids) < 100
    for wrong in ({"deadline": 0.0}, {"deadline": "soon"}, {"sample": -1}, {"priority": 0.5}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            Request(prompt="x", **wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"logit_bias": {9999: 1.0}}, "logit_bias: id 9999 is not in the vocabulary"),
        ({"logit_bias": {"a": 1.0}}, "logit_bias: must be a dict from whole numbers to numbers, got {'a': 1.0}"),
        ({"logit_bias": {7: float("nan")}}, "logit_bias: must be finite, got nan"),
        ({"min_new_tokens": 13}, "min_new_tokens: must be between 0 and max_new_tokens = 12, got 13"),
        ({"presence_penalty": float("nan")}, "presence_penalty: must be finite"),
        ({"ignore_eos": 1}, "ignore_eos: must be true or false, got 1"),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_runs(model, wrong, message):
    with pytest.raises(UserError, match=message):
        model.complete(PROMPTS, **OPTIONS | wrong)
    assert not model._driver_for([]).scheduler.is_busy


def test_something_else_than_requests_is_refused(model):
    async def stream(request, **options):
        return [chunk async for chunk in model.stream_async(request, **options)]

    with pytest.raises(UserError, match=r"requests: must be a list of Requests, got \['x'\]"):
        model.run(["x"])
    for wrong in (model.run_async("x"), stream(b"x")):
        with pytest.raises(UserError, match=r"request: must be (text or )?a Request, got"):
            asyncio.run(wrong)
    with pytest.raises(UserError, match="temperature: the request has its own settings; set it in its params"):
        asyncio.run(stream(Request(prompt="x"), temperature=0))


def test_warmup_accepts_the_options_of_complete(model):
    model.warmup(batch_size=2, prompt_tokens=4, max_new_tokens=4, seed=[1, 2], num_samples=2)
