"""From a checkpoint and a prompt to text: prefill once, then decode on the device with a cache of keys and values.

Axes: B rows, T prompt, S cache, N new tokens, V vocabulary; L layers, H heads, K head_dim.
"""

import re
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from codegen_jax.config import CodeGenConfig
from codegen_jax.conversion.models import open_model
from codegen_jax.conversion.weights import load_params
from codegen_jax.data.tokenizer import Tokenizer
from codegen_jax.errors import UserError, require, require_seed
from codegen_jax.inference.sampling import sample
from codegen_jax.model.attention import LANES, KVCache
from codegen_jax.model.codegen import Params, abstract_params, module


@dataclass(frozen=True)
class Completion:
    """One completion of one prompt.

    Attributes:
        prompt: as given.
        completion: the text after it.
        token_ids: ids of the completion, without eos; not cut at a stop.
        finish_reason: eos, stop (the regular expression matched) or length.
    """

    prompt: str
    completion: str
    token_ids: list[int]
    finish_reason: Literal["eos", "stop", "length"]


class Generator:
    """A model and its tokenizer, ready to complete prompts."""

    def __init__(self, config: CodeGenConfig, params: Params, tokenizer: Tokenizer):
        self.config, self.params, self.tokenizer = config, params, tokenizer

    @classmethod
    def load(cls, model: str, dtype: Literal["bfloat16", "float32"] | None = None) -> "Generator":
        """Read a model, named as in `open_model`, onto the first device; dtype is that of `codegen_jax.load`."""
        weights = open_model(model)
        config = replace(weights.config, embedding_bias=False, dtype=dtype or weights.config.dtype)
        tokenizer = weights.tokenizer
        if tokenizer is None:
            raise UserError(f"{model}: has no tokenizer; convert it again with --tokenizer")
        require(
            tokenizer.vocab_size <= config.vocab_size,
            f"{model}: its tokenizer has {tokenizer.vocab_size} ids, but the network {config.vocab_size}",
        )
        return cls(config, load_params(weights, abstract_params(config)), tokenizer)

    def generate(self, prompt: str, **options: object) -> str:
        """The completion of one prompt as text; options as in `complete`."""
        return self.complete([prompt], **options)[0].completion  # pyright: ignore[reportArgumentType]

    def complete(
        self,
        prompts: list[str],
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.2,
        top_p: float = 0.95,
        top_k: int = 0,
        num_samples: int = 1,
        stop: str | None = None,
        seed: int = 0,
    ) -> list[Completion]:
        """Complete prompts, num_samples completions for each; defaults as in the authors' sample.py.

        Args:
            prompts: texts of any length, completed together.
            max_new_tokens: tokens to add at most.
            temperature: 0 takes the likeliest token; otherwise as in `sample`.
            top_p: as in `sample`.
            top_k: as in `sample`.
            num_samples: completions of each prompt, side by side in the result.
            stop: regular expression, MULTILINE; a completion ends before its first match.
            seed: same seed, same prompt and same sample number: same completion, whatever else is in the batch.

        Raises:
            UserError: for an impossible option, an empty prompt, or prompt and new tokens beyond n_positions.
        """
        require(bool(prompts) and all(prompts), "--prompt: must not be empty")
        require(max_new_tokens > 0, f"--max-new-tokens: {max_new_tokens} must be positive")
        require(temperature >= 0, f"--temperature: {temperature} must not be negative")
        require(0 < top_p <= 1, f"--top-p: {top_p} must be above 0 and at most 1")
        require(top_k >= 0, f"--top-k: {top_k} must not be negative; 0 keeps all")
        require(num_samples > 0, f"--num-samples: {num_samples} must be positive")
        require_seed("--seed", seed)
        try:
            pattern = re.compile(stop, re.MULTILINE) if stop else None
        except re.error as error:
            raise UserError(f"--stop: {stop!r} is not a regular expression ({error})") from error

        ids = [self._encode(prompt, max_new_tokens) for prompt in prompts]
        tokens_BT, segment_ids_BT = _left_pad([row for row in ids for _ in range(num_samples)])
        samples = jnp.tile(jnp.arange(num_samples), len(prompts))
        keys_B = jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(samples)
        new_BN = _decode(
            self.params,
            tokens_BT,
            segment_ids_BT,
            keys_B,
            temperature or 1.0,
            top_p,
            top_k,
            config=self.config,
            max_new_tokens=max_new_tokens,
            greedy=temperature == 0,
            vocab_size=self.tokenizer.vocab_size,
            eos_id=self.tokenizer.eos_id,
        )
        rows = [prompt for prompt in prompts for _ in range(num_samples)]
        return [self._completion(prompt, new, pattern) for prompt, new in zip(rows, np.asarray(new_BN).tolist())]

    def _encode(self, prompt: str, max_new_tokens: int) -> list[int]:
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"--prompt: not valid Unicode ({error.reason} at character {error.start})") from error
        ids = self.tokenizer.encode(prompt)
        require(
            len(ids) + max_new_tokens <= self.config.n_positions,
            f"--max-new-tokens: a prompt of {len(ids)} tokens and {max_new_tokens} new ones exceed the context of "
            f"{self.config.n_positions}; shorten one",
        )
        return ids

    def _completion(self, prompt: str, ids: list[int], pattern: re.Pattern[str] | None) -> Completion:
        reason: Literal["eos", "stop", "length"] = "length"
        if self.tokenizer.eos_id in ids:
            ids, reason = ids[: ids.index(self.tokenizer.eos_id)], "eos"
        text = self.tokenizer.decode(ids)
        match = pattern.search(text) if pattern else None
        if match:
            text, reason = text[: match.start()], "stop"
        return Completion(prompt, text, ids, reason)


def _left_pad(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of ids, right-aligned in a power of two so that few lengths compile, and segment ids: 0 for padding."""
    length = 1 << max(4, (max(map(len, rows)) - 1).bit_length())
    tokens_BT, segment_ids_BT = np.zeros((2, len(rows), length), np.int32)
    for row, ids in enumerate(rows):
        tokens_BT[row, length - len(ids) :] = ids
        segment_ids_BT[row, length - len(ids) :] = 1
    return tokens_BT, segment_ids_BT


def empty_cache(config: CodeGenConfig, batch_size: int, length: int) -> KVCache:
    """A cache for `length` tokens a row, in the compute dtype. Segment -1: a free slot, which no token sees."""
    length = -(-length // LANES) * LANES  # whole tiles of the attention kernels
    shape = (config.n_layer, batch_size, length, config.n_head, config.head_dim)
    free_BS = jnp.full((batch_size, length), -1, jnp.int32)
    return KVCache(jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype), free_BS, 0)


@partial(jax.jit, static_argnames=("config", "max_new_tokens", "greedy", "vocab_size", "eos_id"))
def _decode(
    params: Params,
    tokens_BT: jax.Array,
    segment_ids_BT: jax.Array,
    keys_B: jax.Array,
    temperature: jax.Array,
    top_p: jax.Array,
    top_k: jax.Array,
    *,
    config: CodeGenConfig,
    max_new_tokens: int,
    greedy: bool,
    vocab_size: int,
    eos_id: int,
) -> jax.Array:
    """New ids, int32 [B, N]; eos from the end of a row on. Ids from vocab_size on have no token and are never drawn."""
    model = module(config, params)
    B, T = tokens_BT.shape
    has_token_V = jnp.arange(config.vocab_size) < vocab_size

    def choose(x_B1D: jax.Array, step: jax.Array | int) -> jax.Array:
        logits_BV = jnp.where(has_token_V, model.logits(x_B1D)[:, 0], -jnp.inf)
        if greedy:
            return jnp.argmax(logits_BV, axis=-1)
        step_keys_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, step)
        return sample(logits_BV, step_keys_B, temperature, top_p, top_k)

    lengths_B = segment_ids_BT.sum(1)
    positions_BT = jnp.maximum(jnp.cumsum(segment_ids_BT, axis=1) - 1, 0)
    x_BTD, cache = model.hidden(
        tokens_BT,
        positions_BT=positions_BT,
        segment_ids_BT=segment_ids_BT,
        cache=empty_cache(config, B, T + max_new_tokens),
    )
    first_B = choose(x_BTD[:, -1:], 0)
    new_BN = jnp.full((B, max_new_tokens), eos_id, jnp.int32).at[:, 0].set(first_B)

    def unfinished(carry: tuple) -> jax.Array:
        step, last_B, _, _ = carry
        return (step < max_new_tokens) & jnp.any(last_B != eos_id)

    def next_token(carry: tuple) -> tuple:
        step, last_B, new_BN, cache = carry
        x_B1D, cache = model.hidden(
            last_B[:, None],
            positions_BT=(lengths_B + step - 1)[:, None],
            cache=cache,
        )
        token_B = jnp.where(last_B == eos_id, eos_id, choose(x_B1D, step))
        return step + 1, token_B, new_BN.at[:, step].set(token_B), cache

    return jax.lax.while_loop(unfinished, next_token, (1, first_B, new_BN, cache))[2]
