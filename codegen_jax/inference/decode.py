"""Decoding on the device: rows of tokens grow until they end, one forward pass (round) at a time.

A round processes the last token of each row and `num_draft_tokens` draft tokens after it (none without speculative
decoding), and samples the token that follows each of them. Draft tokens that equal the sampled ones are accepted, so a
round yields one token more than it accepts. The randomness at a position depends only on the row's seed, its sample
number and the position. Speculative decoding therefore gives the same tokens as plain decoding, greedy or sampled, and
rows of a batch may accept different numbers of draft tokens.

Axes: B rows, S slots, J positions in a round = num_draft_tokens + 1, V vocabulary.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from codegen_jax.config import CodeGenConfig
from codegen_jax.inference.decode_weights import DecodeWeights
from codegen_jax.inference.network import Cache, Past, empty_cache, hidden, logits, merge, put
from codegen_jax.inference.options import Options, Sampling
from codegen_jax.inference.sampling import penalize, sample_token

CHUNK = 32  # maximum number of rounds between the host's checks for stop strings and ended rows
NGRAM = 3  # maximum length of the n-gram matched by lookup


class Rows(NamedTuple):
    """The rows being decoded.

    Attributes:
        tokens_BS: int32 ids; the first length_B of each row are valid.
        length_B: int32 current length.
        prompt_B: int32 length of the prompt.
        limit_B: int32 length at which the row ends.
        done_B: bool, whether the row has ended.
        seed_B: uint32 seed; the randomness at a position depends on seed, sample number and position.
        sample_B: uint32 sample number.
        cache: the network's KV cache, for all tokens except the last.
        draft_cache: the draft model's KV cache, which may also lack the second-to-last token; () without a draft model.
        logprobs_BS: float32 log-probability of each token given the preceding ones, if requested.
        top_logprobs_BSN: float32, the N largest log-probabilities at each position.
        top_ids_BSN: int32, the ids with these log-probabilities.
        proposed_B: int32 number of draft tokens so far.
        accepted_B: int32 number of accepted draft tokens so far.
    """

    tokens_BS: jax.Array
    length_B: jax.Array
    prompt_B: jax.Array
    limit_B: jax.Array
    done_B: jax.Array
    seed_B: jax.Array
    sample_B: jax.Array
    cache: Cache
    draft_cache: Cache
    logprobs_BS: jax.Array
    top_logprobs_BSN: jax.Array
    top_ids_BSN: jax.Array
    proposed_B: jax.Array
    accepted_B: jax.Array


class Program(NamedTuple):
    """Static settings of the compiled program; created with `of`.

    Attributes:
        config: config of the network.
        draft: config of the draft model, or None.
        num_draft_tokens: draft tokens per round; 0: no speculative decoding.
        greedy: take the likeliest token instead of sampling.
        penalty: whether there is a repetition penalty.
        logprobs: keep the tokens' log-probabilities and those of the N likeliest ids; None: keep none.
        vocab_size: ids from this one up have no token and are never sampled.
        end_ids: ids that end a row.
    """

    config: CodeGenConfig
    draft: CodeGenConfig | None
    num_draft_tokens: int
    greedy: bool
    penalty: bool
    logprobs: int | None
    vocab_size: int
    end_ids: tuple[int, ...]

    @classmethod
    def of(
        cls,
        options: Options,
        config: CodeGenConfig,
        *,
        vocab_size: int,
        end_ids: tuple[int, ...],
        draft: CodeGenConfig | None = None,
        num_draft_tokens: int = 0,
    ) -> "Program":
        """The static settings for these options."""
        return cls(
            config=config,
            draft=draft,
            num_draft_tokens=num_draft_tokens,
            greedy=options.temperature == 0,
            penalty=options.repetition_penalty != 1,
            logprobs=options.logprobs,
            vocab_size=vocab_size,
            end_ids=end_ids,
        )


@partial(jax.jit, static_argnames=("config", "slots"))
def prefill(weights: DecodeWeights, tokens_BT: jax.Array, *, config: CodeGenConfig, slots: int) -> Cache:
    """A KV cache with `slots` slots, filled with the keys and values of right-padded prompts."""
    _, cache = hidden(weights, config, tokens_BT)
    rows, T = tokens_BT.shape
    return put(empty_cache(config, rows, slots), cache, jnp.zeros(rows, jnp.int32)) if slots > T else cache


@partial(jax.jit, static_argnames=("config", "slots"))
def extend(
    weights: DecodeWeights, cache: Cache, tokens_BT: jax.Array, known_B: jax.Array, *, config: CodeGenConfig, slots: int
) -> Cache:
    """The cache with at least `slots` slots, and with more tokens written after the first known_B of each row."""
    cache = _pad_cache(cache, max(slots, cache[0][1].shape[2]))
    recent = empty_cache(config, *tokens_BT.shape)
    _, recent = hidden(weights, config, tokens_BT, Past(cache, recent, known_B), known_B)
    return merge(Past(cache, recent, known_B))


@partial(jax.jit, static_argnames="slots")
def grow(rows: Rows, *, slots: int) -> Rows:
    """The rows with more slots. Each round reads all slots, so short rows start with few."""
    grown = {
        name: _pad(x, 1, slots) for name, x in rows._asdict().items() if name.endswith(("BS", "BSN")) and x.shape[1]
    }
    return rows._replace(**grown, cache=_pad_cache(rows.cache, slots), draft_cache=_pad_cache(rows.draft_cache, slots))


def _pad_cache(cache: Cache, slots: int) -> Cache:
    return tuple((_pad(keys, 3, slots), _pad(values, 2, slots)) for keys, values in cache)


def _pad(x: jax.Array, axis: int, size: int) -> jax.Array:
    return jnp.pad(x, [(0, size - x.shape[axis] if n == axis else 0) for n in range(x.ndim)])


@jax.jit
def take_rows(rows: Any, index_B: jax.Array) -> Any:
    """Select rows of all arrays by index; an index may occur more than once."""
    return jax.tree.map(lambda x: x[index_B], rows)


@partial(jax.jit, static_argnames="program", donate_argnums=2)
def decode(
    weights: DecodeWeights,
    draft: DecodeWeights | None,
    rows: Rows,
    sampling: Sampling,
    rounds: jax.Array,
    *,
    program: Program,
) -> Rows:
    """Decode `rounds` rounds (at most CHUNK), or until every row has ended."""
    recent = lambda config: empty_cache(config, len(rows.length_B), recent_slots(program.num_draft_tokens))
    past = Past(rows.cache, recent(program.config), rows.length_B - 1)
    # in each round, the draft model starts with the second-to-last token; see `_draft`
    draft_past = Past(rows.draft_cache, recent(program.draft) if program.draft else (), _second_to_last(rows))

    def unfinished(carry: tuple[jax.Array, Rows, Cache, Cache]) -> jax.Array:
        return (carry[0] < rounds) & ~jnp.all(carry[1].done_B)

    def one_round(carry: tuple[jax.Array, Rows, Cache, Cache]) -> tuple[jax.Array, Rows, Cache, Cache]:
        number, rows, recent, draft_recent = carry
        draft_tokens_BJ, draft_recent = _draft(draft, rows, draft_past._replace(recent=draft_recent), sampling, program)
        rows, recent = decode_round(weights, draft_tokens_BJ, rows, past._replace(recent=recent), sampling, program)
        return number + 1, rows, recent, draft_recent

    carry = (jnp.int32(0), rows._replace(cache=(), draft_cache=()), past.recent, draft_past.recent)
    _, grown, recent, draft_recent = jax.lax.while_loop(unfinished, one_round, carry)
    return jax.tree.map(_replicated, grown)._replace(
        cache=merge(past._replace(recent=recent)), draft_cache=merge(draft_past._replace(recent=draft_recent))
    )


def slots_for(length: int, num_draft_tokens: int) -> int:
    """Number of slots for rows of this length, with room for a chunk of CHUNK rounds."""
    return rounded_up(length + recent_slots(num_draft_tokens), 128)


def rounded_up(count: int, step: int) -> int:
    """Round up to a multiple of `step` that is one of four sizes per power of two: few programs, little padding."""
    step = max(step, (1 << (count - 1).bit_length()) // 8)
    return -(-count // step) * step


def recent_slots(num_draft_tokens: int) -> int:
    """Number of slots that a chunk of rounds may need beyond the current length of the rows."""
    return CHUNK * (num_draft_tokens + 1) + 2


def decode_round(
    weights: DecodeWeights, draft_tokens_BJ: jax.Array, rows: Rows, past: Past, sampling: Sampling, program: Program
) -> tuple[Rows, Cache]:
    """One round: each unfinished row gets one token plus one per accepted draft token, up to its limit."""
    last_B1 = _read(rows.tokens_BS, rows.length_B - 1, 1)
    tokens_BJ = jnp.concatenate([last_B1, draft_tokens_BJ], 1)
    x_BJD, recent = hidden(weights, program.config, tokens_BJ, past, rows.length_B - 1)
    logits_BJV = _replicated(logits(weights, x_BJD))
    sampled_BJ = _sample(logits_BJV, rows, draft_tokens_BJ, 0, sampling, program)

    # a position is reached if all draft tokens before it were accepted and none of them ended the row
    accepted_BJ = (sampled_BJ[:, :-1] == draft_tokens_BJ) & ~_is_end(draft_tokens_BJ, program)
    reached_BJ = jnp.cumprod(jnp.pad(accepted_BJ, ((0, 0), (1, 0)), constant_values=True), axis=1).astype(bool)
    room_B = rows.limit_B - rows.length_B
    new_B = jnp.where(rows.done_B, 0, jnp.minimum(reached_BJ.sum(1), room_B))
    ended_B = _is_end(sampled_BJ[jnp.arange(len(new_B)), jnp.maximum(new_B - 1, 0)], program) & (new_B > 0)
    if program.logprobs is not None:
        rows = _keep_logprobs(rows, jax.nn.log_softmax(logits_BJV), sampled_BJ, program.logprobs)
    rows = rows._replace(
        tokens_BS=_store(rows.tokens_BS, sampled_BJ, rows.length_B),
        length_B=rows.length_B + new_B,
        done_B=rows.done_B | ended_B | (new_B == room_B),
        proposed_B=rows.proposed_B + jnp.where(rows.done_B, 0, program.num_draft_tokens),
        accepted_B=rows.accepted_B + jnp.maximum(new_B - 1, 0),
    )
    return rows, recent


def _is_end(tokens: jax.Array, program: Program) -> jax.Array:
    return jnp.isin(tokens, jnp.array(program.end_ids, jnp.int32))


def _sample(
    logits_BJV: jax.Array,
    rows: Rows,
    draft_tokens_BJ: jax.Array,
    first: jax.Array | int,
    sampling: Sampling,
    program: Program,
) -> jax.Array:
    """Sample tokens [B, J], starting `first` positions after each row's end, each given the draft tokens before it."""
    B, J, V = logits_BJV.shape
    if program.penalty:
        known_BS = jnp.arange(rows.tokens_BS.shape[1]) < rows.length_B[:, None]
        seen_BV = (
            jnp.zeros((B, V + 1), bool).at[jnp.arange(B)[:, None], jnp.where(known_BS, rows.tokens_BS, V)].set(True)
        )
        drafted_BJV = jnp.cumsum(jax.nn.one_hot(draft_tokens_BJ, V, dtype=jnp.int8), axis=1) > 0
        drafted_BJV = jnp.pad(drafted_BJV, ((0, 0), (J - draft_tokens_BJ.shape[1], 0), (0, 0)))
        logits_BJV = penalize(logits_BJV, seen_BV[:, None, :V] | drafted_BJV, sampling.repetition_penalty)
    logits_BJV = jnp.where(jnp.arange(V) < program.vocab_size, logits_BJV, -jnp.inf)
    if program.greedy:
        return jnp.argmax(logits_BJV, axis=-1).astype(jnp.int32)
    index_BJ = (rows.length_B - rows.prompt_B)[:, None] + first + jnp.arange(J)

    def sample_one(logits_V: jax.Array, seed: jax.Array, sample: jax.Array, index: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), sample), index)
        return sample_token(logits_V, key, sampling).astype(jnp.int32)

    sample_all = jax.vmap(jax.vmap(sample_one, (0, None, None, 0)))
    return sample_all(logits_BJV, rows.seed_B, rows.sample_B, index_BJ)


def _draft(
    draft: DecodeWeights | None, rows: Rows, past: Past, sampling: Sampling, program: Program
) -> tuple[jax.Array, Cache]:
    """Draft tokens [B, num_draft_tokens] to follow each row, and the draft model's updated recent cache."""
    none_B0 = jnp.zeros((len(rows.length_B), 0), jnp.int32)
    if program.num_draft_tokens == 0:
        return none_B0, past.recent
    if draft is None or program.draft is None:
        return _look_up(rows, program.num_draft_tokens), past.recent
    config = program.draft
    # two tokens: if all draft tokens of a round were accepted, the draft model has not processed the last of them
    first_B = _second_to_last(rows)
    x_B2D, recent = hidden(draft, config, _read(rows.tokens_BS, first_B, 2), past, first_B)
    x_BD = x_B2D[jnp.arange(len(first_B)), rows.length_B - 1 - first_B]

    def next_token(carry: Any, number: jax.Array) -> tuple[Any, jax.Array]:
        x_BD, recent = carry
        logits_B1V = _replicated(logits(draft, x_BD)[:, None])
        token_B1 = _sample(logits_B1V, rows, none_B0, number, sampling, program)
        x_B1D, recent = hidden(draft, config, token_B1, past._replace(recent=recent), rows.length_B + number)
        return (x_B1D[:, 0], recent), token_B1[:, 0]

    (_, recent), draft_tokens_JB = jax.lax.scan(next_token, (x_BD, recent), jnp.arange(program.num_draft_tokens))
    return draft_tokens_JB.T, recent


def _second_to_last(rows: Rows) -> jax.Array:
    return jnp.maximum(rows.length_B - 2, 0)


def _look_up(rows: Rows, num_draft_tokens: int) -> jax.Array:
    """The tokens that followed an earlier occurrence of the row's last tokens.

    Prefers the longest match, then one followed by at least `num_draft_tokens` known tokens, then the latest.
    """
    tokens_BS, last_B = rows.tokens_BS, rows.length_B - 1
    slot_S = jnp.arange(tokens_BS.shape[1])
    matches_BS, same_BS = jnp.zeros(tokens_BS.shape, jnp.int32), slot_S < last_B[:, None]
    for offset in range(NGRAM):
        same_BS &= (jnp.roll(tokens_BS, offset, axis=1) == _read(tokens_BS, last_B - offset, 1)) & (slot_S >= offset)
        matches_BS += same_BS
    whole_BS = slot_S + num_draft_tokens <= last_B[:, None]
    best_B = jnp.argmax((2 * matches_BS + whole_BS) * len(slot_S) + slot_S, axis=1)
    return _read(tokens_BS, best_B + 1, num_draft_tokens)


def _keep_logprobs(rows: Rows, logprobs_BJV: jax.Array, sampled_BJ: jax.Array, top: int) -> Rows:
    values_BJN, ids_BJN = jax.lax.top_k(logprobs_BJV, top)
    sampled = jnp.take_along_axis(logprobs_BJV, sampled_BJ[..., None], axis=-1)[..., 0]
    return rows._replace(
        logprobs_BS=_store(rows.logprobs_BS, sampled, rows.length_B),
        top_logprobs_BSN=_store(rows.top_logprobs_BSN, values_BJN, rows.length_B),
        top_ids_BSN=_store(rows.top_ids_BSN, ids_BJN, rows.length_B),
    )


def _read(x_BS: jax.Array, first_B: jax.Array, count: int) -> jax.Array:
    """Slices of `count` items, starting at each row's own position; [B, count]."""
    return jax.vmap(lambda x, first: jax.lax.dynamic_slice_in_dim(x, first, count))(x_BS, first_B)


def _store(x_BS: jax.Array, new_BJ: jax.Array, first_B: jax.Array) -> jax.Array:
    """Write `new_BJ` starting at each row's own position."""
    update = lambda x, new, first: jax.lax.dynamic_update_slice_in_dim(x, new, first, axis=0)
    return jax.vmap(update)(x_BS, new_BJ, first_B)


def _replicated(x: jax.Array) -> jax.Array:
    return x if jax.sharding.get_abstract_mesh().empty else jax.lax.with_sharding_constraint(x, P())
