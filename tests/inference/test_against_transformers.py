"""24 tiny random float32 models (64 with slow tests) give transformers' greedy tokens, in batches and with lookup."""

import random

import numpy as np
import pytest
import torch

import codegen_jax
from codegen_jax.inference.generator import Generator
from tests.peers import peer, save, tiny_bpe

NEW = 12


@pytest.mark.parametrize("seed", [*range(6), *(pytest.param(n, marks=pytest.mark.slow) for n in range(6, 16))])
def test_greedy_tokens_equal_transformers(tmp_path, seed):
    rng = random.Random(seed)
    head_dim, heads = rng.choice([8, 16]), rng.choice([4, 8])
    tokenizer = tiny_bpe()
    for number in range(4):
        sizes = dict(n_layer=rng.choice([1, 2]), n_embd=head_dim * heads, n_head=heads, rotary_dim=rng.choice([4, 8]))
        theirs = peer(seed=100 * seed + number, **sizes)
        ours = codegen_jax.load(str(save(theirs, tmp_path / str(number), tokenizer=tokenizer)), dtype="float32")
        prompts = ["".join(rng.choices("def f(x): return\n", k=rng.randrange(1, 30))) for _ in range(3)]
        options = dict(max_new_tokens=NEW, temperature=0)
        together = ours.complete(prompts, **options)
        speculative = Generator(ours.config, ours.weights, ours.tokenizer, ours.mesh, draft="lookup")
        drafted = speculative.complete(prompts, **options)
        for prompt, plain, with_lookup in zip(prompts, together, drafted, strict=True):
            ids = torch.tensor([tokenizer.encode(prompt)])
            expected = greedy(theirs, ids, tokenizer)
            assert plain.token_ids == expected, (number, prompt)
            assert with_lookup.token_ids == expected


def greedy(model, ids, tokenizer):
    """transformers' greedy tokens; ids without a token are excluded, since ours never samples them."""
    unknown = [[id] for id in range(tokenizer.vocab_size, model.config.vocab_size)]
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=NEW,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.eos_id,
        bad_words_ids=unknown,
    )
    new = out[0, ids.shape[1] :].tolist()
    return new[: new.index(tokenizer.eos_id)] if tokenizer.eos_id in new else new


def test_logprobs_of_texts_equal_transformers(tmp_path):
    tokenizer, theirs = tiny_bpe(), peer(seed=1)
    ours = codegen_jax.load(str(save(theirs, tmp_path / "model", tokenizer=tokenizer)), dtype="float32")
    for text in ("def f(x): return x", "return f"):
        (score,) = ours.score([text])
        ids = score.token_ids
        with torch.no_grad():
            scores = theirs(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        np.testing.assert_allclose(score.logprobs, scores[torch.arange(len(ids) - 1), ids[1:]], atol=1e-4)
