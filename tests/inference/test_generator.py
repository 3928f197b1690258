"""Completions match their definition regardless of batch, draft model, stops and sharding."""

import pydoc
import re
from dataclasses import fields, replace

import jax
import numpy as np
import pytest
from scipy.stats import chisquare

import codegen_jax
from codegen_jax.compilation import compilations
from codegen_jax.config import CodeGenConfig, MeshConfig
from codegen_jax.errors import UserError
from codegen_jax.inference.engine import Engine
from codegen_jax.inference.generator import Generator
from codegen_jax.model.codegen import init_params, module
from codegen_jax.sharding import make_mesh
from codegen_jax.training.loop import train
from tests.runs import devices, tiny_run

PROMPTS = ["def f(x):\n    return", "class A:", "import numpy as np\n\n\ndef mean(values):"]
ONE = MeshConfig(1, 1, 1)


def make(config, tokenizer, seed, mesh=None, spread=10):
    # ten times the usual scale; otherwise a random network repeats one token for any prompt
    params = jax.tree.map(lambda p: spread * p, init_params(config, seed=seed))
    mesh = mesh or ONE
    mesh = make_mesh(mesh, devices(mesh.data * mesh.fsdp * mesh.tensor))
    made = Generator.of_params(config, params, tokenizer, mesh)
    made.params = params
    return made


@pytest.fixture(scope="module")
def generator(tokenizer):
    config = CodeGenConfig(2, 32, 4, 4, vocab_size=600, n_positions=128, init="huggingface", dtype="float32")
    return make(config, tokenizer, seed=3)


@pytest.fixture(scope="module")
def small_logits(tokenizer):
    """A generator with small logits and therefore small rounding errors; ten times the scale gives logits up to 40."""
    config = CodeGenConfig(2, 32, 4, 4, vocab_size=600, n_positions=128, init="huggingface", dtype="float32")
    return make(config, tokenizer, seed=3, spread=4)


def reference_logits(generator):
    """Logits of the next token from one pass over the whole sequence, without a cache or a batch."""
    forward = jax.jit(lambda params, tokens: module(generator.config, params)(tokens))
    params = generator.params

    def scores(ids):
        padded = np.array([ids + [0] * (64 - len(ids))])  # on the right, where no query sees it
        return np.asarray(forward(params, padded)[0, len(ids) - 1])

    return scores


def fail_if_any(engine, admitted):
    assert not admitted


def with_draft(generator, draft):
    return Generator(generator.config, generator.weights, generator.tokenizer, generator.mesh, draft=draft)


def reference_greedy(generator, prompt, steps):
    scores, ids = reference_logits(generator), generator.tokenizer.encode(prompt)
    new = []
    for _ in range(steps):
        new.append(int(scores(ids + new)[: generator.tokenizer.vocab_size].argmax()))
        if new[-1] == generator.tokenizer.eos_id:
            return new[:-1]
    return new


def test_greedy_is_argmax_in_a_batch_of_prompts_of_different_lengths(generator):
    completions = generator.complete(PROMPTS, max_new_tokens=12, temperature=0)
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        assert completion.token_ids == reference_greedy(generator, prompt, 12)
        assert completion.completion == generator.tokenizer.decode(completion.token_ids)
    assert len({tuple(c.token_ids) for c in completions}) > 1


def test_a_sample_depends_only_on_seed_prompt_and_number(generator):
    options = dict(max_new_tokens=8, temperature=5.0, top_p=1.0)
    batch = generator.complete(PROMPTS, num_samples=3, seed=5, **options)
    alone = generator.complete(PROMPTS[1:2], num_samples=2, seed=5, **options)
    assert [c.token_ids for c in batch[3:5]] == [c.token_ids for c in alone]
    assert len({tuple(c.token_ids) for c in batch[:3]}) == 3
    other = generator.complete(PROMPTS, num_samples=3, seed=6, **options)
    assert [c.token_ids for c in other] != [c.token_ids for c in batch]
    each = generator.complete(PROMPTS, num_samples=3, seed=[6, 5, 6], **options)
    assert each[3:6] == batch[3:6] and each[:3] == other[:3] and each[6:] == other[6:]


def test_a_prompt_of_ids_is_completed_like_its_text(generator):
    options = dict(max_new_tokens=6, temperature=1.0, seed=[1, 2])
    as_ids = [generator.tokenizer.encode(prompt) for prompt in PROMPTS[:2]]
    assert generator.complete(as_ids, **options) == generator.complete(PROMPTS[:2], **options)
    with pytest.raises(UserError, match="prompt: id 9999 is not in the vocabulary"):
        generator.complete([[1, 9999]])
    with pytest.raises(UserError, match="prompt: must not be empty"):
        generator.complete([[]])


def test_several_batches_give_the_same_completions_as_one(generator):
    options = dict(max_new_tokens=6, temperature=1.0, num_samples=4)
    small = Generator(generator.config, generator.weights, generator.tokenizer, generator.mesh, max_rows=5)
    assert small.complete(PROMPTS, **options) == generator.complete(PROMPTS, **options)


def test_samples_pass_a_chi_square_test_against_exact_probabilities(generator):
    vocab = generator.tokenizer.vocab_size
    scores = reference_logits(generator)(generator.tokenizer.encode(PROMPTS[0]))[:vocab].astype(float) / 8.0
    expected = np.exp(scores - scores.max())
    order = np.argsort(-expected)
    kept = order[: int(np.searchsorted(np.cumsum(expected[order[:40]] / expected[order[:40]].sum()), 0.9)) + 1]
    expected = expected[kept] / expected[kept].sum()
    wide = Generator(generator.config, generator.weights, generator.tokenizer, generator.mesh, max_rows=2048)
    samples = wide.complete(PROMPTS[:1], max_new_tokens=1, temperature=8.0, top_k=40, top_p=0.9, num_samples=2048)
    counts = np.bincount([c.token_ids[0] for c in samples], minlength=vocab)
    assert counts.sum() == counts[kept].sum()
    assert len(kept) > 5 and chisquare(counts[kept], expected * 2048).pvalue > 0.001


def test_the_repetition_penalty_equals_transformers(generator):
    import torch
    from transformers import RepetitionPenaltyLogitsProcessor

    process, scores = RepetitionPenaltyLogitsProcessor(3.0), reference_logits(generator)
    ids, new = generator.tokenizer.encode(PROMPTS[2]), []
    for _ in range(10):
        logits = scores(ids + new)[: generator.tokenizer.vocab_size]
        new.append(int(process(torch.tensor([ids + new]), torch.tensor(logits)[None]).argmax()))
    options = dict(max_new_tokens=10, temperature=0, repetition_penalty=3.0)
    plain, drafted = (with_draft(generator, draft).complete(PROMPTS[2:], **options)[0] for draft in (None, "lookup"))
    assert plain.token_ids == drafted.token_ids == new
    assert new != generator.complete(PROMPTS[2:], max_new_tokens=10, temperature=0)[0].token_ids


@pytest.mark.parametrize("temperature", [0, 0.7, 3.0])
@pytest.mark.parametrize("draft", ["lookup", "itself", "another"])
def test_speculative_decoding_does_not_change_tokens(generator, tokenizer, draft, temperature):
    options = dict(max_new_tokens=40, temperature=temperature, num_samples=2, seed=4)
    plain = generator.complete(PROMPTS, **options)
    other = CodeGenConfig(1, 16, 2, 4, vocab_size=520, n_positions=128, init="huggingface", dtype="float32")
    drafts = {"lookup": "lookup", "itself": generator, "another": make(other, tokenizer, seed=1)}
    drafted = with_draft(generator, drafts[draft]).complete(PROMPTS, num_draft_tokens=3, **options)
    assert [c.token_ids for c in drafted] == [c.token_ids for c in plain]
    assert [c.finish_reason for c in drafted] == [c.finish_reason for c in plain]
    proposed, accepted = (sum(getattr(c, name) for c in drafted) for name in ("proposed", "accepted"))
    assert proposed > 0 and (draft != "itself" or accepted > 0.9 * proposed)
    assert draft != "lookup" or temperature or accepted > 0


def test_lookup_drafts_what_followed_before(generator, tokenizer):
    # once a network repeats itself, all draft tokens are accepted: num_draft_tokens + 1 tokens per round
    speculative = with_draft(make(generator.config, tokenizer, seed=3, spread=1), "lookup")
    (completion,) = speculative.complete(["x"], max_new_tokens=100, temperature=0)
    assert completion.accepted > 0.5 * completion.proposed


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_only_ids_with_a_token_are_sampled_including_the_last(generator, temperature):
    # ids 512 to 599 have no token; here they are more likely than any id that has one
    params, vocab = generator.params, generator.tokenizer.vocab_size
    bias = params["head_bias"].at[vocab - 1].set(1e6).at[vocab:].set(2e6)
    biased = Generator.of_params(generator.config, params | {"head_bias": bias}, generator.tokenizer, generator.mesh)
    (completion,) = biased.complete(["x"], max_new_tokens=3, temperature=temperature)
    assert completion.token_ids == [vocab - 1] * 3


def test_eos_ends_a_completion(generator, tokenizer):
    params = generator.params
    biased = params | {"head_bias": params["head_bias"].at[tokenizer.eos_id].set(1e9)}
    ended = Generator.of_params(generator.config, biased, tokenizer, generator.mesh)
    for draft in (None, "lookup"):
        completion = with_draft(ended, draft).complete(["x"], max_new_tokens=5)[0]
        assert (completion.token_ids, completion.completion, completion.finish_reason) == ([], "", "eos")


def test_a_stop_truncates_before_its_first_match_and_ends_the_row(generator):
    whole = generator.complete(PROMPTS[:1], max_new_tokens=60, temperature=0)[0]
    # spans the boundary between two tokens
    second, third = (len(generator.tokenizer.decode(whole.token_ids[:count])) for count in (2, 3))
    text = whole.completion[second - 1 : third]
    for stop in ({"stop": re.escape(text)}, {"stop_strings": ["never", text]}):
        cut = generator.complete(PROMPTS, max_new_tokens=60, temperature=0, **stop)[0]
        assert whole.finish_reason == "length" and cut.finish_reason == "stop"
        assert cut.completion == whole.completion[: whole.completion.index(text)]
        assert len(cut.token_ids) <= 3


def test_logprobs_are_the_models_own(small_logits):
    scores, ids = reference_logits(small_logits), small_logits.tokenizer.encode(PROMPTS[0])
    options = dict(max_new_tokens=10, temperature=2.0, top_k=5, logprobs=3)
    for draft in (None, "lookup"):
        (completion,) = with_draft(small_logits, draft).complete(PROMPTS[:1], **options)
        for place, (id, logprob) in enumerate(zip(completion.token_ids, completion.logprobs, strict=True)):
            expected = jax.nn.log_softmax(scores(ids + completion.token_ids[:place]))
            assert logprob == pytest.approx(float(expected[id]), abs=1e-4)
            top = completion.top_logprobs[place]
            assert list(top) == np.argsort(-expected)[:3].tolist()
            assert list(top.values()) == pytest.approx(sorted(map(float, expected))[:-4:-1], abs=1e-4)


def test_rows_that_outgrow_their_slots_keep_all_tokens(tokenizer):
    config = CodeGenConfig(2, 32, 4, 4, vocab_size=600, n_positions=400, init="huggingface", dtype="float32")
    generator = make(config, tokenizer, seed=3, spread=4)
    options = dict(max_new_tokens=350, temperature=1.0, logprobs=2)
    prompts = [PROMPTS[0], PROMPTS[2] * 2]
    for draft in (None, "lookup", generator):
        for completion in with_draft(generator, draft).complete(prompts, **options):
            ids = tokenizer.encode(completion.prompt)
            assert len(completion.token_ids) == 350
            found, top, _ = generator.logprobs(np.array([ids + completion.token_ids]), top=2)
            np.testing.assert_allclose(completion.logprobs, found[0, len(ids) - 1 :], atol=1e-4)
            for place, likeliest in zip(range(len(ids) - 1, 400), completion.top_logprobs):
                np.testing.assert_allclose(list(likeliest.values()), top[0, place], atol=1e-4)


def test_scores_of_a_text_equal_those_from_generating_it(small_logits):
    (completion,) = small_logits.complete(PROMPTS[:1], max_new_tokens=10, temperature=0, logprobs=0)
    ids = small_logits.tokenizer.encode(PROMPTS[0])
    found = small_logits.logprobs(np.array([ids + completion.token_ids]))[0][0]
    np.testing.assert_allclose(found[len(ids) - 1 :], completion.logprobs, atol=1e-4)
    (score,) = small_logits.score([PROMPTS[0]], top=3)
    assert score.token_ids == ids
    np.testing.assert_allclose(score.logprobs, found[: len(ids) - 1], atol=1e-5)
    for place, top in enumerate(score.top_logprobs, 1):
        expected = np.asarray(jax.nn.log_softmax(reference_logits(small_logits)(ids[:place])))
        assert list(top) == np.argsort(-expected)[:3].tolist()
        np.testing.assert_allclose(list(top.values()), np.sort(expected)[:-4:-1], atol=1e-4)


def test_the_chunks_of_a_stream_join_to_the_completion(generator):
    whole = generator.complete(PROMPTS[:1], max_new_tokens=40, temperature=0)[0]
    ninth = generator.tokenizer.decode(whole.token_ids[:9]).rstrip("\ufffd")
    temporary = re.escape(ninth[-3:]) + "$"  # matches until more text follows
    chunks = list(generator.stream(PROMPTS[0], max_new_tokens=40, temperature=0, stop=temporary))
    assert "".join(chunks) == generator.generate(PROMPTS[0], max_new_tokens=40, temperature=0, stop=temporary)
    assert len("".join(chunks)) < len(whole.completion)
    for prompt in PROMPTS:
        options = dict(max_new_tokens=40, temperature=2.0, seed=1)
        chunks = list(generator.stream(prompt, **options))
        assert "".join(chunks) == generator.generate(prompt, **options)
        assert list(generator.stream(generator.tokenizer.encode(prompt), **options)) == chunks
        assert len(chunks) > 5


@pytest.mark.parametrize("axes", [(1, 1, 1), pytest.param((2, 1, 2), marks=pytest.mark.slow)])
def test_warmup_compiles_what_complete_needs(tokenizer, axes):
    config = CodeGenConfig(2, 32, 4, 4, vocab_size=600, n_positions=400, init="huggingface", dtype="float32")
    generator = make(config, tokenizer, seed=3, mesh=MeshConfig(*axes))
    generator.warmup(batch_size=3, prompt_tokens=16, max_new_tokens=200, temperature=0.7, top_k=7)
    before = len(compilations())
    generator.complete([prompt[:8] for prompt in PROMPTS], max_new_tokens=200, temperature=1, top_k=3)
    assert set(compilations()[before:]) <= {"jit(take_rows)"}  # resizing


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_streams_and_speculative_decoding_give_the_same_text_in_any_dtype(tokenizer, dtype):
    config = CodeGenConfig(2, 32, 4, 4, vocab_size=600, n_positions=128, init="huggingface", dtype=dtype)
    generator = make(config, tokenizer, seed=3)
    options = dict(max_new_tokens=70, temperature=0)
    for prompt in PROMPTS:
        text = generator.generate(prompt, **options)
        assert "".join(generator.stream(prompt, **options)) == text
        assert with_draft(generator, "lookup").generate(prompt, **options) == text


@pytest.mark.parametrize(
    "axes", [(4, 1, 2), (2, 2, 2), *(pytest.param(axes, marks=pytest.mark.slow) for axes in [(1, 1, 4), (2, 1, 1)])]
)
def test_any_mesh_gives_the_same_tokens_as_one_device(generator, tokenizer, axes):
    config = replace(generator.config, vocab_size=600)
    mesh = make_mesh(MeshConfig(*axes), devices(int(np.prod(axes))))
    sharded = Generator.of_params(config, generator.params, tokenizer, mesh)
    for draft, options in ((None, {"temperature": 0}), ("lookup", {"temperature": 1.0, "num_samples": 2})):
        theirs = generator.complete(PROMPTS, max_new_tokens=12, **options)
        ours = with_draft(sharded, draft).complete(PROMPTS, max_new_tokens=12, **options)
        assert [c.token_ids for c in ours] == [c.token_ids for c in theirs]
    kernel = sharded.weights.layers[0].inner_ND.values
    assert kernel.addressable_shards[0].data.shape[0] == kernel.shape[0] // axes[2]


def test_a_prompt_longer_than_the_context_is_truncated_on_the_left_with_a_warning(generator, caplog):
    prompt = "x = 1\n" * 100 + PROMPTS[2]
    scores, ids = reference_logits(generator), generator.tokenizer.encode(prompt)
    assert len(ids) > 128
    (completion,) = generator.complete([prompt], max_new_tokens=4, temperature=0)
    assert "only its last 124 tokens are used" in caplog.text
    new = []
    for _ in range(4):
        new.append(int(scores(ids[-124:] + new)[: generator.tokenizer.vocab_size].argmax()))
    assert completion.token_ids == new


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": [""]}, "prompt"),
        ({"prompts": ["\ud800"]}, "prompt: not valid Unicode"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 128}, "exceed the context of 128"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"logprobs": 601}, "logprobs"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"min_p": 2.0}, "min_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"num_samples": 0}, "num_samples"),
        ({"stop": "("}, "stop"),
        ({"stop_strings": [""]}, "stop_strings: must not contain an empty string"),
        ({"truncate": "other"}, "truncate"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"seed": [1, 2]}, "seed: must be an integer or a list of 1, one per prompt, got 2"),
        ({"temprature": 1.0}, "temprature: no such option; did you mean temperature?"),
        ({"colour": 1.0}, "colour: no such option; the options are temperature, top_p"),
        ({"draft": "lookup"}, "draft: no such option"),
        ({"max_new_tokens": 2.5}, "max_new_tokens: must be a whole number, got 2.5"),
        ({"max_new_tokens": True}, "max_new_tokens: must be a whole number, got True"),
        ({"temperature": "hot"}, "temperature: must be a number, got 'hot'"),
        ({"stop": 3}, "stop: must be text, got 3"),
        ({"stop_strings": "xyz_"}, "stop_strings: must be a list of text, got 'xyz_'"),
        ({"seed": "1"}, "seed: must be a whole number or a list of whole numbers, got '1'"),
        ({"prompts": "x"}, "prompts: must be a list of texts or a list of whole numbers, got 'x'"),
        ({"prompts": [1]}, "prompts: must be a list of texts or a list of whole numbers, got [1]"),
        ({"prompts": []}, "prompts: must not be empty"),
        ({"truncate": np.zeros(3)}, "truncate: must be codegen, got array([0., 0., 0.])"),
    ],
)
def test_errors_name_the_invalid_option(generator, options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        generator.complete(**{"prompts": ["x"]} | options)


def test_a_trained_checkpoint_loads_and_generates(tmp_path, token_folder):
    devices(8)
    train(tiny_run(tmp_path / "run", token_folder))
    loaded = codegen_jax.load(str(tmp_path / "run"))
    from codegen_jax.model.codegen import abstract_params
    from codegen_jax.weights.base import load_params
    from codegen_jax.weights.open import open_model

    loaded.params = load_params(open_model(str(tmp_path / "run")), abstract_params(loaded.config))
    text = loaded.generate("def f(", max_new_tokens=4, temperature=0)
    assert text == loaded.tokenizer.decode(reference_greedy(loaded, "def f(", 4))


def test_errors_name_the_invalid_argument_of_load(tmp_path):
    for wrong, message in (
        ({"quantize": "int4"}, "quantize: must be int8, got 'int4'"),
        ({"dtype": "float16"}, "dtype: must be one of bfloat16, float32, got 'float16'"),
        ({"mesh": 4}, "mesh: must be a MeshConfig, got 4"),
        ({"draft": 1}, "draft: must be text or a Path, got 1"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            codegen_jax.load(str(tmp_path), **wrong)
    with pytest.raises(UserError, match=re.escape("model: must be text or a Path, got ['x']")):
        codegen_jax.load(["x"])


def test_help_shows_every_option_with_its_type(generator):
    text = pydoc.render_doc(generator.generate, renderer=pydoc.plaintext)
    for field in fields(codegen_jax.Options):
        assert re.search(rf"\b{field.name}: .+ = ", text), field.name
    assert "top_k: number of most likely tokens to keep; 0 keeps all." in text


def test_numpy_integers_are_accepted_as_seeds(generator):
    options = dict(max_new_tokens=5, temperature=1.0)
    assert generator.generate("x", seed=np.int64(3), **options) == generator.generate("x", seed=3, **options)


def test_draft_must_be_lookup_or_a_loaded_model(generator):
    with pytest.raises(UserError, match=r"draft: must be 'lookup' or a loaded model, got 'lokup'"):
        with_draft(generator, "lokup")


def test_warmup_checks_its_arguments(generator):
    for arguments, message in (
        ((0, 5), "batch_size: must be positive, got 0"),
        ((1, "5"), "prompt_tokens: must be a whole number, got '5'"),
        ((1, 128), "the context"),
    ):
        with pytest.raises(UserError, match=message):
            generator.warmup(*arguments, max_new_tokens=4)


def test_the_prompt_of_generate_must_be_a_string(generator):
    with pytest.raises(UserError, match=re.escape("prompt: must be text, got ['x']")):
        generator.generate(["x"])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("draft", [None, "lookup", "model"])
def test_turns_that_reuse_the_cache_equal_completions_of_their_whole_prompts(
    generator, temperature, draft, monkeypatch
):
    drafts = {None: None, "lookup": "lookup", "model": generator}
    model = Generator(generator.config, generator.weights, generator.tokenizer, generator.mesh, draft=drafts[draft])
    prompts, before = [generator.tokenizer.encode(text) for text in ("def f(x):", "import os\n", "x")], None
    options = {
        "temperature": temperature,
        "max_new_tokens": 12,
        "stop_strings": ("\n",),
        "num_draft_tokens": 3,
        "top_p": 1.0,
    }
    for turn in range(4):
        seeds = [10 * turn + row for row in range(3)]
        with monkeypatch.context() as patch:
            if turn:  # cached tokens must not be recomputed in later turns
                patch.setattr(Engine, "_prefill", fail_if_any)
            found, before = model.complete_turn(prompts, before, seed=seeds, **options)
        alone = generator.complete(prompts, seed=seeds, **options)
        assert [one.token_ids for one in found] == [one.token_ids for one in alone]
        assert [one.completion for one in found] == [one.completion for one in alone]
        comment = generator.tokenizer.encode(f"# {turn}\n")
        prompts = [[*ids, *one.token_ids, *comment] for ids, one in zip(prompts, found)]
    with pytest.raises(UserError, match="prompts: expected 3, as in the previous turn, got 2"):
        model.complete_turn(prompts[:2], before, max_new_tokens=1)


def test_a_turn_with_a_truncated_history_is_recomputed(generator):
    found, before = generator.complete_turn(["x = 1\ny = 2\nz = 3\n"], temperature=0, max_new_tokens=8)
    text = f"= 2\nz = 3\n{found[0].completion}\n"
    (again,), _ = generator.complete_turn([text], before, temperature=0, max_new_tokens=8)
    assert again == generator.complete([text], temperature=0, max_new_tokens=8)[0]
