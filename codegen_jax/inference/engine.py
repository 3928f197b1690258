"""A table of rows on the devices: requests are admitted to rows, decoded together and released. Token ids only.

What a row computes depends on its request and on the sizes of the table, never on the other rows: every product has the
same shape, whatever the other rows hold, and prompts are prefilled in groups whose size depends on their own length.
"""

import logging
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from codegen_jax.config import CodeGenConfig
from codegen_jax.inference import programs
from codegen_jax.inference.decode_weights import DecodeWeights
from codegen_jax.inference.decoder import Cache, Past
from codegen_jax.inference.programs import Chunk, Program, Rows, Table, recent_slots, rounded_up
from codegen_jax.inference.request import SamplingParams
from codegen_jax.inference.sampling import Settings
from codegen_jax.sharding import ROWS

Item = TypeVar("Item")
log = logging.getLogger(__name__)

# Prompts shorter than this share a prefill, since it is as fast for 128 tokens as for 16 if reading the weights takes
# most of the time.
PREFILL_TOKENS = 128

# The latest prefills are kept, since the samples of a prompt are admitted one after the other.
KEPT_PREFILLS = 2


class Network(NamedTuple):
    """A network's config and its weights on the mesh."""

    config: CodeGenConfig
    weights: DecodeWeights


class Prefilled(NamedTuple):
    """Prompts that were prefilled together, and their keys and values for each network."""

    prompts: list[tuple[int, ...]]
    caches: list[Cache]


class Admission(NamedTuple):
    """A request for a row of the table.

    Attributes:
        row: the row.
        ids: the tokens so far: the prompt, and what a request that was interrupted had already generated.
        prompt_tokens: length of the prompt.
        params: how the request is completed.
        sample: its sample number.
        is_prefilled: whether the row's KV cache already has the prompt.
    """

    row: int
    ids: list[int]
    prompt_tokens: int
    params: SamplingParams
    sample: int
    is_prefilled: bool = False


class Engine:
    """The table, its programs and its memory.

    Args:
        networks: the network, and the draft model if there is one.
        mesh: mesh with the axes data (rows) and tensor (heads and the MLP).
        vocab_size: ids from this one up have no token and are never sampled.
        end_ids: ids that end a completion.
        num_draft_tokens: draft tokens per round; 0: no speculative decoding.

    Attributes:
        rows: current number of rows.
        slots: current number of KV cache slots per row.
    """

    def __init__(
        self,
        networks: Sequence[Network],
        mesh: Mesh,
        *,
        vocab_size: int,
        end_ids: tuple[int, ...],
        num_draft_tokens: int = 0,
    ):
        self.networks, self.mesh, self.vocab_size = networks, mesh, vocab_size
        self.end_ids, self.num_draft_tokens = end_ids, num_draft_tokens
        self._shards = int(np.prod([mesh.shape[axis] for axis in ROWS]))
        self._seen: set[Any] = set()
        self.clear()

    def clear(self) -> None:
        """Release the table's memory."""
        self.rows = self.slots = 0
        self._table: Any = None
        self._params: dict[int, SamplingParams] = {}
        self._bias_BV: Any = None
        self._chunk: Any = None
        self._prefilled: deque[Prefilled] = deque(maxlen=KEPT_PREFILLS)

    def padded_rows(self, count: int) -> int:
        """The number of rows of a table for `count` requests."""
        return padded_rows(count, self._shards)

    def slots_for(self, length: int) -> int:
        """The number of slots per row of a table for rows of this length."""
        return programs.slots_for(length, self.num_draft_tokens)

    def kv_bytes(self, rows: int, slots: int) -> int:
        """Bytes of keys and values per device, with those of the latest prefills."""
        sizes = [2 * c.n_layer * c.n_head * c.head_dim * jnp.dtype(c.dtype).itemsize for c, _ in self.networks]
        table = rows * (slots + recent_slots(self.num_draft_tokens)) // self.mesh.devices.size
        return sum(sizes) * (table + KEPT_PREFILLS * slots // self.mesh.shape["tensor"])

    def resize(self, kept: Sequence[int | None], slots: int) -> None:
        """Give the table len(kept) rows of `slots` slots; row number n is the former row kept[n], or free.

        One layer is resized at a time, which needs memory for only one layer besides the two tables' own.
        """
        B, index_B = len(kept), np.array([row or 0 for row in kept], np.int32)
        with jax.set_mesh(self.mesh):
            if self._table is None:
                rows, pasts = self._rows([], B, slots), [self._empty(config, B, slots) for config, _ in self.networks]
            else:
                rows = jax.tree.map(lambda x: np.asarray(x)[index_B], self._table.rows)
                rows = self._replicate(rows._replace(tokens_BS=_resized(rows.tokens_BS, slots)))
                old, self._table = list(self._table.pasts), None  # `_resized` has the only reference to each
                pasts = [self._resized(old.pop(0), index_B, slots) for _ in self.networks]
            self._table = Table(rows, tuple(pasts))
        self._params = {new: self._params[old] for new, old in enumerate(kept) if old in self._params}
        self.rows, self.slots, self._bias_BV = B, slots, None
        self.update([row for row, old in enumerate(kept) if old is None], [])

    def update(self, released: Sequence[int], admitted: Sequence[Admission]) -> None:
        """Free some rows, and give rows to requests, whose prompts are prefilled."""
        if not released and not admitted:
            return
        self._params = {row: params for row, params in self._params.items() if row not in released}
        self._params |= {admission.row: admission.params for admission in admitted}
        self._bias_BV = None
        which_B = np.zeros(self.rows, bool)
        which_B[[*released, *(admission.row for admission in admitted)]] = True
        with jax.set_mesh(self.mesh):
            self._prefill([admission for admission in admitted if not admission.is_prefilled])
            rows, pasts = self._table
            new = self._rows(admitted, self.rows, self.slots)
            bases = tuple(past.base_B for past in pasts)
            rows, bases = programs.set_rows(rows, new, bases, which_B)
            self._table = Table(rows, tuple(past._replace(base_B=base_B) for past, base_B in zip(pasts, bases)))

    def dispatch(self, rounds: int) -> None:
        """Start a chunk of rounds; `fetch` waits for it."""
        config, weights = self.networks[0]
        draft_config, draft_weights = self.networks[1] if len(self.networks) > 1 else (None, None)
        params = list(self._params.values())
        top = max((p.logprobs for p in params if p.logprobs is not None), default=None)
        program = Program(
            config=config,
            vocab_size=self.vocab_size,
            end_ids=self.end_ids,
            draft=draft_config,
            num_draft_tokens=self.num_draft_tokens,
            adjusts=any(p.adjusts_logits for p in params),
            logprobs=top if not top else min(config.vocab_size, 1 << (top - 1).bit_length()),
        )
        table, self._table = self._table, None
        with jax.set_mesh(self.mesh):
            self._table, self._chunk = self._call(
                f"decoding of {self.rows} row(s) x {self.slots} slots",
                program,
                programs.decode,
                weights,
                draft_weights,
                table,
                self._biases(),
                np.int32(rounds),
                program=program,
            )

    def fetch(self) -> Chunk:
        """Wait for the chunk, and return its arrays as NumPy's."""
        chunk, self._chunk = self._chunk, None
        return jax.device_get(chunk)

    def warmup(self, rows: int, slots: int, prompt_tokens: int, params: SamplingParams) -> None:
        """Compile what a table of this size needs for prompts of up to `prompt_tokens` tokens."""
        self.resize([None] * rows, slots)
        for length in sorted({rounded_up(length, 16) for length in range(1, prompt_tokens + 1)}):
            if self.slots_for(length) <= slots:
                self.update([], [Admission(0, [0] * length, length, params, 0)])
        self.dispatch(0)
        self.fetch()

    def open(self, caches: Sequence[Cache], slots: int) -> None:
        """Start with a table whose rows have these KV caches; requests that are admitted to them are prefilled."""
        B = len(caches[0][0][0])
        with jax.set_mesh(self.mesh):
            pasts = [self._past(config, cache) for (config, _), cache in zip(self.networks, caches)]
            self._table = Table(self._rows([], B, slots), tuple(pasts))
        self.rows, self.slots = B, slots

    def close(self, longest: int) -> tuple[Cache, ...]:
        """The KV caches of all rows, none of which is longer than `longest`; the table is cleared."""
        slots = self.slots_for(longest + recent_slots(self.num_draft_tokens))
        if slots > self.slots:
            self.resize(range(self.rows), slots)
        with jax.set_mesh(self.mesh):
            pasts = programs.merge_all(self._table).pasts
        self.clear()
        return tuple(past.cache for past in pasts)

    def _rows(self, admitted: Sequence[Admission], B: int, slots: int) -> Rows:
        """The rows of these requests; all other rows are free."""
        tokens_BS = np.zeros((B, slots), np.int32)
        values = np.ones((8, B), np.int64)  # a free row has one token
        settings = np.zeros((len(Settings._fields), B), np.float32)
        values[4:] = 0
        done_B = np.ones(B, bool)
        for row, ids, prompt, params, sample, _ in admitted:
            tokens_BS[row, : len(ids)] = ids
            done_B[row] = False
            limits = prompt + params.min_new_tokens, prompt + params.max_new_tokens
            values[:, row] = len(ids), prompt, *limits, params.ignore_eos, params.seed, sample, params.num_draft_tokens
            settings[:, row] = [getattr(params, name) for name in Settings._fields]
        names = ("length_B", "prompt_B", "minimum_B", "limit_B", "ignore_end_B", "seed_B", "sample_B", "drafts_B")
        dtypes = dict(ignore_end_B=bool, seed_B=np.uint32, sample_B=np.uint32)
        arrays = {name: value.astype(dtypes.get(name, np.int32)) for name, value in zip(names, values)}
        sampling = Settings(*settings)
        sampling = sampling._replace(top_k=sampling.top_k.astype(np.int32))
        return self._replicate(Rows(tokens_BS=tokens_BS, done_B=done_B, settings=sampling, **arrays))

    def _biases(self) -> Any:
        """The rows' logit biases, float32 [B, vocab_size]; None if no row has any."""
        if self._bias_BV is None and any(params.logit_bias for params in self._params.values()):
            bias_BV = np.zeros((self.rows, self.vocab_size), np.float32)
            for row, params in self._params.items():
                bias_BV[row, list(params.logit_bias)] = list(params.logit_bias.values())
            self._bias_BV = self._replicate(bias_BV)
        return self._bias_BV

    def _prefill(self, admitted: Sequence[Admission]) -> None:
        """Insert the keys and values of prompts into the table; those of equal prompts are computed once."""
        rows_of: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
        for admission in admitted:
            rows_of[tuple(admission.ids)].append(admission.row)
        lengths: defaultdict[int, list[tuple[int, ...]]] = defaultdict(list)
        for ids, rows in rows_of.items():
            if known := next((group for group in self._prefilled if ids in group.prompts), None):
                self._insert(known, {ids: rows})
            else:
                lengths[rounded_up(len(ids), 16)].append(ids)
        for T, prompts in lengths.items():
            together = prompts_per_prefill(T, self.rows, self._shards)
            for some in batched(prompts, together):
                tokens_PT = np.zeros((together, T), np.int32)
                for number, ids in enumerate(some):
                    tokens_PT[number, : len(ids)] = ids
                name = f"prefill of {together} x {T} tokens"
                caches = [
                    self._call(name, config, programs.prefill, weights, tokens_PT, config=config)
                    for config, weights in self.networks
                ]
                self._prefilled.append(Prefilled(some, caches))
                self._insert(self._prefilled[-1], {ids: rows_of[ids] for ids in some})

    def _insert(self, prefilled: Prefilled, rows_of: dict[tuple[int, ...], list[int]]) -> None:
        """Write the keys and values of prompts into their rows."""
        rows, pasts = self._table
        places = [(prefilled.prompts.index(ids), row) for ids, targets in rows_of.items() for row in targets]
        prompts_B, rows_B = np.zeros((2, self.rows), np.int32)
        prompts_B[: len(places)], rows_B[: len(places)] = zip(*places)
        name, count = f"insertion into {self.rows} row(s) x {self.slots} slots", np.int32(len(places))
        caches = [
            self._call(name, (config, new[0][0].shape), programs.insert, past.cache, new, prompts_B, rows_B, count)
            for (config, _), new, past in zip(self.networks, prefilled.caches, pasts)
        ]
        self._table = Table(rows, tuple(past._replace(cache=cache) for past, cache in zip(pasts, caches)))

    def _past(self, config: CodeGenConfig, cache: Cache) -> Past:
        B = len(cache[0][0])
        recent = programs.empty(config, B, recent_slots(self.num_draft_tokens))
        return Past(cache, recent, self._replicate(np.zeros(B, np.int32)))

    def _empty(self, config: CodeGenConfig, B: int, slots: int) -> Past:
        return self._past(config, programs.empty(config, B, slots))

    def _resized(self, past: Past, index_B: np.ndarray, slots: int) -> Past:
        cache, recent, base_B = list(past.cache), list(past.recent), np.asarray(past.base_B)[index_B]
        del past
        for layer in range(len(cache)):
            cache[layer] = programs.take_rows(cache[layer], index_B, slots=slots)
            recent[layer] = programs.take_rows(recent[layer], index_B)
        return Past(tuple(cache), tuple(recent), self._replicate(base_B))

    def _replicate(self, tree: Any) -> Any:
        """Replicate over all devices, as `decode` does with its results; any other sharding would recompile it."""
        return jax.device_put(tree, NamedSharding(self.mesh, P()))

    def _call(self, name: str, static: Any, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a jitted function, and log its compilation if it took over two seconds."""
        key, began = (name, static), time.perf_counter()
        result = function(*args, **kwargs)
        if key not in self._seen:
            self._seen.add(key)
            if (seconds := time.perf_counter() - began) > 2:
                log.info(f"compiled {name} in {seconds:.1f} s")
        return result


def padded_rows(count: int, shards: int) -> int:
    """The smallest number of rows that is at least `count`, and a power of two per shard of the rows."""
    return shards * (1 << (-(-count // shards) - 1).bit_length())


def prompts_per_prefill(T: int, rows: int, shards: int) -> int:
    """The number of prompts of T tokens that are prefilled together. It depends on sizes only."""
    return padded_rows(max(1, min(rows, PREFILL_TOKENS // T)), shards)


def _resized(x_BS: np.ndarray, slots: int) -> np.ndarray:
    cut_BS = x_BS[:, :slots]
    return np.pad(cut_BS, ((0, 0), (0, slots - cut_BS.shape[1])))


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of at most `size` consecutive items (Python 3.12 has it in itertools)."""
    remaining = iter(items)
    while some := list(islice(remaining, size)):
        yield some
