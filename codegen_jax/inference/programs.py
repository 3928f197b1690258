"""What runs on the devices: prefill, insertion into the table, and rounds of decoding.

A round processes the last token of each row and `num_draft_tokens` draft tokens after it (none without speculative
decoding), and samples the token that follows each of them. Draft tokens that equal the sampled ones are accepted, so a
round yields one token more than it accepts. The randomness at a position depends only on the row's seed, its sample
number and the position. Speculative decoding therefore gives the same tokens as plain decoding, greedy or sampled, and
rows of a batch may accept different numbers of draft tokens.

Axes: B rows, S slots, J positions in a round = num_draft_tokens + 1, C new tokens in a chunk of rounds, P prompts, T
prompt tokens, N likeliest ids, V vocabulary.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from codegen_jax.config import CodeGenConfig
from codegen_jax.inference.decode_weights import DecodeWeights
from codegen_jax.inference.decoder import MERGE_AFTER, Cache, Past, cache_axes, empty_cache, hidden, logits, merge
from codegen_jax.inference.sampling import Settings, choose_token, penalize
from codegen_jax.sharding import ROWS, constrain, shard_map

CHUNK = 32  # maximum number of rounds between the host's looks at the rows
NGRAM = 3  # maximum length of the n-gram matched by lookup


class Rows(NamedTuple):
    """The rows being decoded, without their KV caches.

    Attributes:
        tokens_BS: int32 ids; the first length_B of each row are valid.
        length_B: int32 current length.
        prompt_B: int32 length of the prompt.
        minimum_B: int32 length before which no end id is chosen.
        limit_B: int32 length at which the row ends.
        done_B: bool, whether the row has ended, or is free.
        ignore_end_B: bool, whether end ids are tokens like any other.
        seed_B: uint32 seed; the randomness at a position depends on seed, sample number and position.
        sample_B: uint32 sample number.
        drafts_B: int32 number of draft tokens that the row may accept per round.
        settings: how tokens are chosen.
    """

    tokens_BS: Any
    length_B: Any
    prompt_B: Any
    minimum_B: Any
    limit_B: Any
    done_B: Any
    ignore_end_B: Any
    seed_B: Any
    sample_B: Any
    drafts_B: Any
    settings: Settings


class Table(NamedTuple):
    """The rows and their KV caches.

    Attributes:
        rows: see `Rows`.
        pasts: the network's KV cache, for all tokens of a row except the last; and the draft model's if there is one,
            which may also lack the second-to-last token.
    """

    rows: Rows
    pasts: tuple[Past, ...]


class Chunk(NamedTuple):
    """What a chunk of rounds added to each row. Of the C places of a row, the first count_B are valid.

    Attributes:
        tokens_BC: int32 new ids.
        count_B: int32 number of new ids.
        done_B: bool, whether the row has ended.
        proposed_B: int32 number of draft tokens.
        accepted_B: int32 number of accepted draft tokens.
        logprobs_BC: float32 log-probability of each new id given the preceding ones, if requested.
        top_logprobs_BCN: float32, the N largest log-probabilities at each position.
        top_ids_BCN: int32, the ids with these log-probabilities.
    """

    tokens_BC: Any
    count_B: Any
    done_B: Any
    proposed_B: Any
    accepted_B: Any
    logprobs_BC: Any
    top_logprobs_BCN: Any
    top_ids_BCN: Any


class Program(NamedTuple):
    """Static settings of the compiled program. None of them is a setting's value.

    Attributes:
        config: config of the network.
        vocab_size: ids from this one up have no token and are never sampled.
        end_ids: ids that end a row.
        draft: config of the draft model, or None.
        num_draft_tokens: draft tokens per round; 0: no speculative decoding.
        adjusts: whether any row has penalties, biases or a minimum length.
        logprobs: keep the tokens' log-probabilities and those of the N likeliest ids; None: keep none.
    """

    config: CodeGenConfig
    vocab_size: int
    end_ids: tuple[int, ...]
    draft: CodeGenConfig | None = None
    num_draft_tokens: int = 0
    adjusts: bool = False
    logprobs: int | None = None


@partial(jax.jit, static_argnames="config")
def prefill(weights: DecodeWeights, tokens_PT: jax.Array, *, config: CodeGenConfig) -> Cache:
    """The keys and values of right-padded prompts, as caches of T slots that are replicated over the mesh's rows."""
    _, cache = hidden(weights, config, tokens_PT)
    return jax.tree.map(lambda x: constrain(x, None, "heads", None, None), cache)


@partial(jax.jit, static_argnames=("config", "slots"))
def extend(
    weights: DecodeWeights, cache: Cache, tokens_BT: jax.Array, known_B: jax.Array, *, config: CodeGenConfig, slots: int
) -> Cache:
    """The cache with at least `slots` slots, and with more tokens written after the first known_B of each row."""
    cache = tuple((_sized(keys, 3, slots), _sized(values, 2, slots)) for keys, values in cache)
    past = Past(cache, empty_cache(config, *tokens_BT.shape), known_B)
    _, recent = hidden(weights, config, tokens_BT, past, known_B)
    return merge(past._replace(recent=recent), known_B, jnp.ones(len(known_B), bool)).cache


@partial(jax.jit, static_argnames=("config", "rows", "slots"))
def empty(config: CodeGenConfig, rows: int, slots: int) -> Cache:
    """A KV cache without tokens, sharded as in a table."""
    cache = empty_cache(config, rows, slots)
    return jax.tree.map(lambda x: constrain(x, "batch", "heads", None, None), cache)


@partial(jax.jit, donate_argnums=0)
def insert(cache: Cache, new: Cache, prompts_B: jax.Array, rows_B: jax.Array, count: jax.Array) -> Cache:
    """A KV cache into which prompts are written, in place: number prompts_B[n] of `new` into row rows_B[n], n < count.

    One call writes all layers and rows, since a call takes 0.1 to 0.3 ms of the host's time.
    """

    def write(cache: Cache, new: Cache, prompts_B: jax.Array, rows_B: jax.Array, count: jax.Array) -> Cache:
        shard = 0 if jax.sharding.get_abstract_mesh().empty else jax.lax.axis_index(ROWS)
        local_rows, zero = len(cache[0][0]), jnp.int32(0)

        def write_prompt(number: jax.Array, cache: Cache) -> Cache:
            local = rows_B[number] - shard * local_rows
            is_here = (local >= 0) & (local < local_rows)
            place = (jnp.clip(local, 0, local_rows - 1), zero, zero, zero)

            def written(old: jax.Array, new: jax.Array) -> jax.Array:
                new = jax.lax.dynamic_slice_in_dim(new, prompts_B[number], 1)
                kept = jax.lax.dynamic_slice(old, place, new.shape)
                return jax.lax.dynamic_update_slice(old, jnp.where(is_here, new, kept), place)

            return jax.tree.map(written, cache, new)

        return jax.lax.fori_loop(0, count, write_prompt, cache)

    axes, new_axes = cache_axes(cache), jax.tree.map(lambda _: (None, "heads", None, None), new)
    return shard_map(write, (axes, new_axes, (), (), ()), axes)(cache, new, prompts_B, rows_B, count)


@partial(jax.jit, static_argnames="slots")
def take_rows(layer_cache: Any, index_B: jax.Array, *, slots: int | None = None) -> Any:
    """One layer's cache with its rows selected by index, and with `slots` slots if given."""
    keys, values = (constrain(x[index_B], "batch", "heads", None, None) for x in layer_cache)
    return (keys, values) if slots is None else (_sized(keys, 3, slots), _sized(values, 2, slots))


@jax.jit
def set_rows(old: Rows, new: Rows, bases: tuple[jax.Array, ...], which_B: jax.Array) -> tuple[Rows, Any]:
    """`old` with the rows `which_B` replaced by those of `new`, and the `base_B` of their KV caches."""
    choose = lambda old, new: jnp.where(which_B.reshape(-1, *[1] * (old.ndim - 1)), new, old)
    rows = jax.tree.map(choose, old, new)
    bases = tuple(map(choose, bases, _next_positions(rows)))
    return jax.tree.map(_replicated, (rows, bases))


def _sized(x: jax.Array, axis: int, size: int) -> jax.Array:
    """`x` padded with zeros or cut to `size` along an axis."""
    x = jax.lax.slice_in_dim(x, 0, min(size, x.shape[axis]), axis=axis)
    return jnp.pad(x, [(0, size - x.shape[axis] if n == axis else 0) for n in range(x.ndim)])


@partial(jax.jit, static_argnames="program", donate_argnums=2)
def decode(
    weights: DecodeWeights,
    draft: DecodeWeights | None,
    table: Table,
    bias_BV: jax.Array | None,
    rounds: jax.Array,
    *,
    program: Program,
) -> tuple[Table, Chunk]:
    """Decode `rounds` rounds (at most CHUNK), or until every row has ended.

    Args:
        weights: the network's weights.
        draft: the draft model's weights, if there is one.
        table: the rows; its buffers are reused.
        bias_BV: float32, added to the logits of ids below program.vocab_size; None if no row has a bias.
        rounds: int32.
        program: the static settings.
    """

    def unfinished(carry: tuple[jax.Array, Table, Chunk]) -> jax.Array:
        return (carry[0] < rounds) & ~jnp.all(carry[1].rows.done_B)

    def one_round(carry: tuple[jax.Array, Table, Chunk]) -> tuple[jax.Array, Table, Chunk]:
        number, (rows, pasts), chunk = carry
        pasts = [
            merge(past, next_B, next_B - past.base_B >= MERGE_AFTER)
            for past, next_B in zip(pasts, _next_positions(rows))
        ]
        drafts_BJ = jnp.zeros((len(rows.length_B), 0), jnp.int32)
        if draft is not None:
            drafts_BJ, recent = _draft(draft, rows, pasts[1], bias_BV, program)
            pasts[1] = pasts[1]._replace(recent=recent)
        elif program.num_draft_tokens:
            drafts_BJ = _look_up(rows, program.num_draft_tokens)
        rows, recent, chunk = decode_round(weights, drafts_BJ, rows, pasts[0], chunk, bias_BV, program)
        pasts[0] = pasts[0]._replace(recent=recent)
        return number + 1, Table(rows, tuple(pasts)), chunk

    chunk = empty_chunk(len(table.rows.length_B), program)
    _, (rows, pasts), chunk = jax.lax.while_loop(unfinished, one_round, (jnp.int32(0), table, chunk))
    rows, bases, chunk = jax.tree.map(_replicated, (rows, [past.base_B for past in pasts], chunk))
    return Table(rows, tuple(past._replace(base_B=base_B) for past, base_B in zip(pasts, bases))), chunk


@partial(jax.jit, donate_argnums=0)
def merge_all(table: Table) -> Table:
    """The table with the recent tokens of all rows moved to its caches, which need `recent_slots` more slots."""
    everywhere = jnp.ones(len(table.rows.length_B), bool)
    pairs = zip(table.pasts, _next_positions(table.rows))
    return table._replace(pasts=tuple(merge(past, next_B, everywhere) for past, next_B in pairs))


def slots_for(length: int, num_draft_tokens: int) -> int:
    """Number of slots for rows of this length, with room for a round's draft tokens."""
    return rounded_up(length + num_draft_tokens + 1, 128)


def rounded_up(count: int, step: int) -> int:
    """Round up to a multiple of `step` that is one of four sizes per power of two: few programs, little padding."""
    step = max(step, (1 << (count - 1).bit_length()) // 8)
    return -(-count // step) * step


def recent_slots(num_draft_tokens: int) -> int:
    """Number of recent slots, so that a round fits in when a row has MERGE_AFTER - 1 recent tokens."""
    return MERGE_AFTER + num_draft_tokens + 1


def empty_chunk(rows: int, program: Program) -> Chunk:
    tokens = CHUNK * (program.num_draft_tokens + 1)
    scored, top = (0, 0) if program.logprobs is None else (tokens, program.logprobs)
    return Chunk(
        tokens_BC=jnp.zeros((rows, tokens), jnp.int32),
        count_B=jnp.zeros(rows, jnp.int32),
        done_B=jnp.zeros(rows, bool),
        proposed_B=jnp.zeros(rows, jnp.int32),
        accepted_B=jnp.zeros(rows, jnp.int32),
        logprobs_BC=jnp.zeros((rows, scored), jnp.float32),
        top_logprobs_BCN=jnp.zeros((rows, scored, top), jnp.float32),
        top_ids_BCN=jnp.zeros((rows, scored, top), jnp.int32),
    )


def decode_round(
    weights: DecodeWeights,
    draft_tokens_BJ: jax.Array,
    rows: Rows,
    past: Past,
    chunk: Chunk,
    bias_BV: jax.Array | None,
    program: Program,
) -> tuple[Rows, Cache, Chunk]:
    """One round: each unfinished row gets one token plus one per accepted draft token, up to its limit."""
    last_B1 = _read(rows.tokens_BS, rows.length_B - 1, 1)
    tokens_BJ = jnp.concatenate([last_B1, draft_tokens_BJ], 1)
    x_BJD, recent = hidden(weights, program.config, tokens_BJ, past, rows.length_B - 1)
    logits_BJV = _replicated(logits(weights, x_BJD))
    sampled_BJ = _sample(logits_BJV, rows, draft_tokens_BJ, 0, bias_BV, program)

    # a position is reached if all draft tokens before it were accepted and none of them ended the row
    allowed_BJ = jnp.arange(draft_tokens_BJ.shape[1]) < rows.drafts_B[:, None]
    accepted_BJ = (sampled_BJ[:, :-1] == draft_tokens_BJ) & allowed_BJ & ~_is_end(draft_tokens_BJ, rows, program)
    reached_BJ = jnp.cumprod(jnp.pad(accepted_BJ, ((0, 0), (1, 0)), constant_values=True), axis=1).astype(bool)
    room_B = rows.limit_B - rows.length_B
    new_B = jnp.where(rows.done_B, 0, jnp.minimum(reached_BJ.sum(1), room_B))
    last_B1 = jnp.take_along_axis(sampled_BJ, jnp.maximum(new_B - 1, 0)[:, None], axis=1)
    ended_B = _is_end(last_B1, rows, program)[:, 0] & (new_B > 0)
    done_B = rows.done_B | ended_B | (new_B == room_B)
    if program.logprobs is not None:
        chunk = _keep_logprobs(chunk, jax.nn.log_softmax(logits_BJV), sampled_BJ, program.logprobs)
    chunk = chunk._replace(
        tokens_BC=_store(chunk.tokens_BC, sampled_BJ, chunk.count_B),
        count_B=chunk.count_B + new_B,
        done_B=done_B,
        proposed_B=chunk.proposed_B + jnp.where(rows.done_B, 0, jnp.minimum(rows.drafts_B, program.num_draft_tokens)),
        accepted_B=chunk.accepted_B + jnp.maximum(new_B - 1, 0),
    )
    tokens_BS = _store(rows.tokens_BS, sampled_BJ, rows.length_B)
    return rows._replace(tokens_BS=tokens_BS, length_B=rows.length_B + new_B, done_B=done_B), recent, chunk


def _is_end(tokens_BJ: jax.Array, rows: Rows, program: Program) -> jax.Array:
    return jnp.isin(tokens_BJ, jnp.array(program.end_ids, jnp.int32)) & ~rows.ignore_end_B[:, None]


def _sample(
    logits_BJV: jax.Array,
    rows: Rows,
    draft_tokens_BJ: jax.Array,
    first: jax.Array | int,
    bias_BV: jax.Array | None,
    program: Program,
) -> jax.Array:
    """Sample tokens [B, J], starting `first` positions after each row's end, each given the draft tokens before it."""
    J, V = logits_BJV.shape[1:]
    index_BJ = (rows.length_B - rows.prompt_B)[:, None] + first + jnp.arange(J)
    if program.adjusts:
        logits_BJV = _adjusted(logits_BJV, rows, draft_tokens_BJ, index_BJ, bias_BV, program)
    logits_BJV = jnp.where(jnp.arange(V) < program.vocab_size, logits_BJV, -jnp.inf)

    def key_of(seed: jax.Array, sample: jax.Array, index: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), sample), index)

    keys_BJ = jax.vmap(jax.vmap(key_of, (None, None, 0)))(rows.seed_B, rows.sample_B, index_BJ)
    settings = jax.tree.map(lambda x_B: jnp.broadcast_to(x_B[:, None], index_BJ.shape), rows.settings)
    return choose_token(logits_BJV, keys_BJ, settings)


def _adjusted(
    logits_BJV: jax.Array,
    rows: Rows,
    draft_tokens_BJ: jax.Array,
    index_BJ: jax.Array,
    bias_BV: jax.Array | None,
    program: Program,
) -> jax.Array:
    """The logits after biases, penalties and minimum lengths, given the draft tokens before each position."""
    B, J, V = logits_BJV.shape
    place_S, row_B1 = jnp.arange(rows.tokens_BS.shape[1]), jnp.arange(B)[:, None]
    counted = lambda which_BS: jnp.zeros((B, V + 1)).at[row_B1, jnp.where(which_BS, rows.tokens_BS, V)].add(1.0)
    known_BS = place_S < rows.length_B[:, None]
    seen_BV, count_BV = counted(known_BS), counted(known_BS & (place_S >= rows.prompt_B[:, None]))
    drafted_BJV = jnp.cumsum(jax.nn.one_hot(draft_tokens_BJ, V, dtype=jnp.float32), axis=1)
    drafted_BJV = jnp.pad(drafted_BJV, ((0, 0), (J - draft_tokens_BJ.shape[1], 0), (0, 0)))
    settings = jax.tree.map(lambda x_B: x_B[:, None], rows.settings)
    if bias_BV is not None:
        logits_BJV = logits_BJV.at[..., : bias_BV.shape[1]].add(bias_BV[:, None])
    seen_BJV, count_BJV = (x_BV[:, None, :V] + drafted_BJV for x_BV in (seen_BV, count_BV))
    logits_BJV = penalize(logits_BJV, seen_BJV > 0, count_BJV, settings)
    is_end_V = jnp.isin(jnp.arange(V), jnp.array(program.end_ids, jnp.int32))
    is_early_BJ = (rows.prompt_B[:, None] + index_BJ < rows.minimum_B[:, None]) & ~rows.ignore_end_B[:, None]
    return jnp.where(is_early_BJ[..., None] & is_end_V, -jnp.inf, logits_BJV)


def _draft(
    draft: DecodeWeights | None, rows: Rows, past: Past, bias_BV: jax.Array | None, program: Program
) -> tuple[jax.Array, Cache]:
    """Draft tokens [B, num_draft_tokens] to follow each row, and the draft model's updated recent cache."""
    assert draft is not None and program.draft is not None
    config, none_B0 = program.draft, jnp.zeros((len(rows.length_B), 0), jnp.int32)
    # two tokens: if all draft tokens of a round were accepted, the draft model has not processed the last of them
    first_B = _second_to_last(rows)
    x_B2D, recent = hidden(draft, config, _read(rows.tokens_BS, first_B, 2), past, first_B)
    x_BD = x_B2D[jnp.arange(len(first_B)), rows.length_B - 1 - first_B]

    def next_token(carry: Any, number: jax.Array) -> tuple[Any, jax.Array]:
        x_BD, recent = carry
        logits_B1V = _replicated(logits(draft, x_BD)[:, None])
        token_B1 = _sample(logits_B1V, rows, none_B0, number, bias_BV, program)
        x_B1D, recent = hidden(draft, config, token_B1, past._replace(recent=recent), rows.length_B + number)
        return (x_B1D[:, 0], recent), token_B1[:, 0]

    (_, recent), draft_tokens_JB = jax.lax.scan(next_token, (x_BD, recent), jnp.arange(program.num_draft_tokens))
    return draft_tokens_JB.T, recent


def _next_positions(rows: Rows) -> tuple[jax.Array, jax.Array]:
    """The first position that the network processes in the next round, and the first that the draft model does."""
    return rows.length_B - 1, _second_to_last(rows)


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


def _keep_logprobs(chunk: Chunk, logprobs_BJV: jax.Array, sampled_BJ: jax.Array, top: int) -> Chunk:
    values_BJN, ids_BJN = jax.lax.top_k(logprobs_BJV, top)
    sampled = jnp.take_along_axis(logprobs_BJV, sampled_BJ[..., None], axis=-1)[..., 0]
    return chunk._replace(
        logprobs_BC=_store(chunk.logprobs_BC, sampled, chunk.count_B),
        top_logprobs_BCN=_store(chunk.top_logprobs_BCN, values_BJN, chunk.count_B),
        top_ids_BCN=_store(chunk.top_ids_BCN, ids_BJN, chunk.count_B),
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
