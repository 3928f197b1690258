"""The public API: a loaded model that completes, streams and scores texts, for any number of callers at a time."""

import asyncio
import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh

from codegen_jax.chips import GIB
from codegen_jax.config import CodeGenConfig, MeshConfig
from codegen_jax.data.tokenizer import Tokenizer
from codegen_jax.errors import UserError, require
from codegen_jax.fields import check_type
from codegen_jax.inference import scoring, turns
from codegen_jax.inference.decode_weights import DecodeWeights, arrange_params, load_weights
from codegen_jax.inference.driver import Driver
from codegen_jax.inference.engine import Admission, Engine, Network
from codegen_jax.inference.matrix import Quantize
from codegen_jax.inference.request import Completion, Options, Request, accepts_options
from codegen_jax.inference.scheduler import Scheduler, Ticket
from codegen_jax.inference.scoring import Score
from codegen_jax.inference.text import Text
from codegen_jax.inference.turns import Turn
from codegen_jax.model.codegen import Params
from codegen_jax.renamed import accepts_former_names
from codegen_jax.sharding import make_mesh
from codegen_jax.weights.base import Weights
from codegen_jax.weights.generation_config import end_ids
from codegen_jax.weights.open import open_model

log = logging.getLogger(__name__)

Dtype = Literal["bfloat16", "float32"] | None
Progress = Callable[[int, Completion], None]


class Generator:
    """A model and its tokenizer, ready to complete and score texts.

    All calls share one table of rows: requests of several threads, or of many `await`s, are decoded together.

    In the examples of its methods, runs/double is a model that was trained on one function.

    Args:
        config: config of the network.
        weights: weights on `mesh`.
        tokenizer: the model's tokenizer.
        mesh: mesh with the axes data (rows) and tensor (heads and the MLP).
        max_rows: maximum number of rows decoded together; None: 64, or 16 on a CPU, since 64 needed 2.5 GB more at 350M
            (docs/performance.md).
        draft: enables speculative decoding. "lookup" drafts the tokens that followed an earlier occurrence of the last
            tokens; otherwise a smaller model with the same tokenizer on the same mesh. It saves time and does not
            change the output.
        end_ids: ids that end a completion; None: the tokenizer's.
        max_kv_bytes: maximum size of the keys and values per device; None: what the weights leave of 90% of a device's
            memory, or half of the machine's memory on a CPU.
        fixed_table: keep the table at its maximum size. Otherwise it grows and shrinks with the load, which is faster,
            but floating-point sums then differ in their last bits from load to load.

    Raises:
        UserError: if the draft model has a different tokenizer or mesh.
    """

    def __init__(
        self,
        config: CodeGenConfig,
        weights: DecodeWeights,
        tokenizer: Tokenizer,
        mesh: Mesh,
        max_rows: int | None = None,
        draft: "Literal['lookup'] | Generator | None" = None,
        end_ids: tuple[int, ...] | None = None,
        max_kv_bytes: int | None = None,
        fixed_table: bool = False,
    ):
        self.config, self.weights, self.tokenizer, self.mesh = config, weights, tokenizer, mesh
        self.max_rows = max_rows or (16 if self._is_cpu else 64)
        known = draft in (None, "lookup") or isinstance(draft, Generator)
        require(known, f"draft: must be 'lookup' or a loaded model, got {draft!r}")
        self.end_ids = tokenizer.end_ids if end_ids is None else end_ids
        self.speculates = draft is not None
        self.draft_model = draft if isinstance(draft, Generator) else None
        if self.draft_model:
            require(self.draft_model.mesh == mesh, "draft: the draft model must be on the same mesh as the model")
            ours, drafts = tokenizer.fingerprint, self.draft_model.tokenizer.fingerprint
            require(
                ours == drafts,
                f"draft: the draft model must have the model's tokenizer {ours}, but has {drafts}",
            )
        self.max_kv_bytes = max_kv_bytes or self._default_kv_bytes()
        self.fixed_table = fixed_table
        self._driver: Driver | None = None
        self._choosing_driver = threading.Lock()

    @classmethod
    def load(
        cls,
        model: str | Path,
        dtype: Dtype = None,
        quantize: Quantize = None,
        mesh: MeshConfig | None = None,
        draft: str | Path | None = None,
        allow_nonfinite: bool = False,
        max_rows: int | None = None,
        max_kv_bytes: int | None = None,
        fixed_table: bool = False,
        adapters: Sequence[str | Path] = (),
    ) -> "Generator":
        """Load a model; same as `codegen_jax.load`.

        >>> model = Generator.load("runs/double", dtype="float32", quantize="int8")
        """
        for name, value, hint in (
            ("model", model, str | Path),
            ("dtype", dtype, Dtype),
            ("quantize", quantize, Quantize),
            ("mesh", mesh, MeshConfig | None),
            ("draft", draft, str | Path | None),
            ("allow_nonfinite", allow_nonfinite, bool),
            ("max_rows", max_rows, int | None),
            ("max_kv_bytes", max_kv_bytes, int | None),
            ("fixed_table", fixed_table, bool),
            ("adapters", adapters, list[str | Path]),
        ):
            check_type(name, value, hint)
        for name, value in (("max_rows", max_rows), ("max_kv_bytes", max_kv_bytes)):
            require(value is None or value > 0, f"{name}: must be positive, got {value}")
        weights = open_model(str(model), allow_nonfinite=allow_nonfinite, adapters=[str(name) for name in adapters])
        config = _decoding_config(weights.config, dtype)
        tokenizer = tokenizer_of(weights, model)
        devices = make_mesh(mesh) if mesh else make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
        draft_model = (
            None
            if draft is None or draft == "lookup"
            else cls.load(draft, dtype, quantize, mesh, allow_nonfinite=allow_nonfinite)
        )
        return cls(
            config,
            load_weights(weights, config, devices, quantize),
            tokenizer,
            devices,
            max_rows=max_rows,
            draft=draft_model or ("lookup" if draft else None),
            end_ids=end_ids(weights.generation_config, tokenizer),
            max_kv_bytes=max_kv_bytes,
            fixed_table=fixed_table,
        )

    @classmethod
    def of_params(cls, config: CodeGenConfig, params: Params, tokenizer: Tokenizer, mesh: Mesh) -> "Generator":
        """Create a generator from parameters that are already on the mesh, as in training.

        >>> from codegen_jax.model.codegen import init_params
        >>> trained = codegen_jax.load("runs/double")
        >>> params = init_params(trained.config, seed=0)
        >>> untrained = Generator.of_params(trained.config, params, trained.tokenizer, trained.mesh)
        """
        config = _decoding_config(config)
        with jax.set_mesh(mesh):
            weights = jax.jit(partial(arrange_params, config=config, groups=mesh.shape["tensor"]))(params)
        return cls(config, weights, tokenizer, mesh)

    @accepts_options
    def generate(self, prompt: str, **options: Any) -> str:
        """The completion of one prompt as text.

        >>> model = codegen_jax.load("runs/double")
        >>> print("def double(x):" + model.generate("def double(x):", max_new_tokens=64, temperature=0))
        def double(x):
            return 2 * x
        """
        check_type("prompt", prompt, str)
        return self.complete([prompt], **options)[0].completion

    @accepts_options
    def complete(
        self, prompts: Sequence[str | Sequence[int]], progress: Progress | None = None, **options: Any
    ) -> list[Completion]:
        """Complete prompts of any length, with num_samples completions per prompt.

        A prompt longer than the context is truncated on the left, with a warning.

        >>> model = codegen_jax.load("runs/double")
        >>> completions = model.complete(["def double(x):", "    return"], temperature=0.8)
        >>> [(completion.prompt, completion.finish_reason) for completion in completions]
        [('def double(x):', 'eos'), ('    return', 'eos')]

        Args:
            prompts: texts or token ids.
            progress: called with the index and the completion of each request as soon as it has ended.

        Raises:
            UserError: for an unknown or invalid option, an empty prompt, an id outside the vocabulary, or a prompt that
                fits into the context, but not together with the new tokens.
        """
        return self.run(Options.of(options).requests(prompts), progress)

    def run(self, requests: Sequence[Request], progress: Progress | None = None) -> list[Completion]:
        """Complete requests, each with its own settings.

        >>> from codegen_jax import Request, SamplingParams
        >>> model = codegen_jax.load("runs/double")
        >>> greedy, sampled = SamplingParams(temperature=0), SamplingParams(temperature=0.8, seed=1)
        >>> requests = [Request(prompt="def double(x):", params=params) for params in (greedy, sampled)]
        >>> [completion.finish_reason for completion in model.run(requests)]
        ['eos', 'eos']

        Args:
            requests: they start by priority, then the longest prompts first.
            progress: called with the index and the completion of each request as soon as it has ended.

        Raises:
            UserError: see `complete`; also if a request fails by itself, after all others have ended.
        """
        check_type("requests", requests, Sequence[Request])
        ids, driver = self._prompts(requests), self._driver_for(requests)
        tickets = [self._ticket(driver.scheduler, *pair) for pair in zip(requests, ids)]
        ended: deque[int] = deque()  # numbers of the requests that ended in the last step
        for number, ticket in enumerate(tickets):
            ticket.listener = lambda ticket, number=number: ended.append(number) if ticket.is_done else None
        completions: dict[int, Completion] = {}

        def report() -> None:
            while ended:
                number = ended.popleft()
                if tickets[number].error is None:
                    completions[number] = self._completion(requests[number], tickets[number])
                    if progress:
                        progress(number, completions[number])

        driver.run(sorted(tickets, key=lambda ticket: -len(ticket.ids)), report)
        return [completions[number] for number in range(len(requests))]

    @accepts_options
    async def complete_async(self, prompts: Sequence[str | Sequence[int]], **options: Any) -> list[Completion]:
        """Like `complete`, for asyncio: requests of all tasks are decoded together.

        >>> import asyncio
        >>> model = codegen_jax.load("runs/double")
        >>> [completion.finish_reason for completion in asyncio.run(model.complete_async(["def double(x):"]))]
        ['eos']

        Cancelling the task cancels its requests.
        """
        found = [self.run_async(request) for request in Options.of(options).requests(prompts)]
        return list(await asyncio.gather(*found))

    async def run_async(self, request: Request) -> Completion:
        """Complete one request, for asyncio.

        >>> import asyncio
        >>> from codegen_jax import Request
        >>> model = codegen_jax.load("runs/double")
        >>> asyncio.run(model.run_async(Request(prompt="def double(x):"))).finish_reason
        'eos'
        """
        check_type("request", request, Request)
        driver, ticket = self._submission(request)
        async for _ in driver.updates(ticket):
            pass
        return self._completion(request, ticket)

    async def stream_async(self, request: str | Request, **options: Any) -> AsyncIterator[str]:
        """Like `stream`, for asyncio; options are those of `complete` if the request is a text.

        >>> import asyncio
        >>> model = codegen_jax.load("runs/double")
        >>> async def show():
        ...     async for chunk in model.stream_async("def double(x):", temperature=0):
        ...         print(chunk, end="")
        >>> asyncio.run(show())
        <BLANKLINE>
            return 2 * x
        """
        check_type("request", request, str | Request)
        if isinstance(request, str):
            (request,) = _one(Options.of(options).requests([request]))
        else:
            require(not options, f"{next(iter(options), '')}: the request has its own settings; set it in its params")
        driver, ticket = self._submission(request, watched=True)
        async with aclosing(driver.updates(ticket)) as updates:  # leaving early cancels the ticket at once
            async for _ in updates:
                if chunk := ticket.text.new(ticket.is_done):
                    yield chunk

    @accepts_options
    def complete_turn(
        self, prompts: Sequence[str | Sequence[int]], before: Turn | None = None, **options: Any
    ) -> tuple[list[Completion], Turn]:
        """Complete prompts that begin with the rows of the previous turn, reusing its KV cache.

        >>> model = codegen_jax.load("runs/double")
        >>> (first,), turn = model.complete_turn(["def double(x):"], temperature=0)
        >>> prompt = "def double(x):" + first.completion + "def double("
        >>> (second,), turn = model.complete_turn([prompt], turn, temperature=0)
        >>> print(second.completion)
        x):
            return 2 * x

        Args:
            prompts: at most `max_rows`; every later turn needs the same number, in the same order.
            before: the `Turn` returned for the previous turn.

        Returns:
            One completion per prompt, as from `complete`, and the state for the next turn.

        Raises:
            UserError: see `complete`; also for several samples, too many prompts, or more keys and values than
                `max_kv_bytes` allows.
        """
        chosen = Options.of(options)
        require(chosen.num_samples == 1, f"num_samples: must be 1 for a turn, got {chosen.num_samples}")
        allowed = f"between 1 and {self.max_rows} are allowed, got {len(prompts)}"
        require(0 < len(prompts) <= self.max_rows, f"prompts: {allowed}")
        requests = chosen.requests(prompts)
        ids = self._prompts(requests)
        engine = self._engine(chosen.num_draft_tokens)
        rows, slots = engine.padded_rows(len(prompts)), engine.slots_for(max(map(len, ids)) + chosen.max_new_tokens)
        require(
            engine.kv_bytes(rows, slots) <= self.max_kv_bytes,
            f"max_kv_bytes: {self.max_kv_bytes / GIB:.2f} GiB are too little for {rows} rows of {slots} tokens; "
            "increase it, or reduce max_new_tokens or the number of prompts (max_rows in an evaluation)",
        )
        reopened = turns.reopen(engine, ids, before, slots)
        scheduler = Scheduler(
            engine,
            partial(Admission, is_prefilled=reopened is not None),
            max_rows=self.max_rows,
            fixed=(rows, reopened or slots),
            keeps_rows=True,
            short=self._short,
        )
        tickets = [self._ticket(scheduler, request, prompt) for request, prompt in zip(requests, ids)]
        Driver(scheduler).run(tickets)
        after = turns.close(engine, tickets)
        return [self._completion(*pair) for pair in zip(requests, tickets)], after

    @accepts_options
    def stream(self, prompt: str | Sequence[int], **options: Any) -> Iterator[str]:
        """The completion of one prompt in chunks, yielded as soon as their text is final.

        Joined, the chunks equal the result of `generate`. Closing the iterator early cancels the request.

        >>> model = codegen_jax.load("runs/double")
        >>> for chunk in model.stream("def double(", temperature=0):
        ...     print(chunk, end="", flush=True)
        x):
            return 2 * x
        """
        check_type("prompt", prompt, str | Sequence[int])
        (request,) = _one(Options.of(options).requests([prompt]))
        return self._stream(*self._submission(request, watched=True))

    def _stream(self, driver: Driver, ticket: Ticket) -> Iterator[str]:
        with closing(driver.stream(ticket)) as steps:  # Python 3.12.3 leaves it open when this generator is closed
            for _ in steps:
                if chunk := ticket.text.new(ticket.is_done):
                    yield chunk

    def score(self, texts: Sequence[str], top: int = 0) -> list[Score]:
        """The log-probabilities that the model assigns to given texts.

        >>> model = codegen_jax.load("runs/double")
        >>> right, wrong = model.score(["def double(x):", "def double(2):"])
        >>> len(right.token_ids), len(right.logprobs)
        (5, 4)
        >>> sum(right.logprobs) > sum(wrong.logprobs)
        True

        Args:
            texts: texts of any length up to the context.
            top: also return this many of the most likely ids at each position.

        Raises:
            UserError: if a text is empty or longer than the context.
        """
        check_type("texts", texts, Sequence[str])
        check_type("top", top, int)
        require(0 <= top <= self.config.vocab_size, f"top: must be in [0, {self.config.vocab_size}], got {top}")
        scores = []
        for text in texts:
            ids = _encoded(self.tokenizer, text, "text")
            require(
                len(ids) <= self.config.n_positions,
                f"text: {len(ids)} tokens exceed the context of {self.config.n_positions}; shorten the text",
            )
            logprobs_BT, top_BTN, ids_BTN = self.logprobs(np.array([ids]), top)
            likeliest = [dict(zip(*pair)) for pair in zip(ids_BTN[0].tolist(), top_BTN[0].tolist())]
            scores.append(Score(ids, logprobs_BT[0].tolist(), likeliest))
        return scores

    def logprobs(self, tokens_BT: np.ndarray, top: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Log-probabilities of ids given the preceding ids in the row.

        >>> model = codegen_jax.load("runs/double")
        >>> logprobs_BT, top_logprobs_BTN, top_ids_BTN = model.logprobs(np.array([[1, 2, 3]]), top=5)
        >>> logprobs_BT.shape, top_ids_BTN.shape
        ((1, 2), (1, 2, 5))

        Returns:
            The log-probabilities, float32 [B, T - 1]; those of the `top` most likely ids at the same positions, float32
            [B, T - 1, top]; and these ids, int32 [B, T - 1, top].
        """
        B, T = tokens_BT.shape
        columns = max(16, 1 << (T - 2).bit_length()) + 1  # no other token attends to the last one
        padded = np.zeros((self._engine().padded_rows(B), columns), np.int32)
        padded[:B, :T] = tokens_BT
        with jax.set_mesh(self.mesh):
            arrays = scoring.logprobs(self.weights, padded, config=self.config, top=top)
        logprobs, values, ids = (np.asarray(x)[:B, : T - 1] for x in arrays)
        return logprobs, values, ids

    @accepts_former_names
    @accepts_options
    def warmup(self, batch_size: int, prompt_tokens: int, **options: Any) -> None:
        """Compile in advance what any mix of up to `batch_size` requests needs, whatever the values of their settings.

        Whether any request has log-probabilities, and how many, and whether any has penalties, biases or a minimum
        length, must be as in these options. It compiles for all sizes that the table may get; a fixed table has one.
        The small programs that resize a table are compiled when they are needed.

        >>> codegen_jax.load("runs/double").warmup(batch_size=2, prompt_tokens=8, max_new_tokens=32)

        Args:
            batch_size: maximum number of requests at a time.
            prompt_tokens: maximum length of a prompt.
        """
        chosen, context = Options.of(options), self.config.n_positions
        for name, value in (("batch_size", batch_size), ("prompt_tokens", prompt_tokens)):
            check_type(name, value, int)
            require(value > 0, f"{name}: must be positive, got {value}")
        longest = prompt_tokens + chosen.max_new_tokens
        require(
            longest <= context,
            f"prompt_tokens: {prompt_tokens} and {chosen.max_new_tokens} new tokens exceed the context of {context}",
        )
        engine = self._engine(chosen.num_draft_tokens)
        batch_sizes = range(1, min(batch_size, self.max_rows) + 1)
        sizes = {(engine.padded_rows(rows), engine.slots_for(n)) for rows in batch_sizes for n in range(1, longest + 1)}
        if self.fixed_table:
            sizes = {(engine.padded_rows(self.max_rows), engine.slots_for(context))}
        (request,) = replace(chosen, seed=0, num_samples=1).requests([[0]])
        for rows, slots in sorted(sizes):
            if engine.kv_bytes(rows, slots) <= self.max_kv_bytes:
                engine.warmup(rows, slots, prompt_tokens, request.params)
                engine.clear()

    def _prompts(self, requests: Sequence[Request]) -> list[list[int]]:
        """The checked token ids of the requests' prompts; equal texts are encoded once."""
        ids_of: dict[str, list[int]] = {}
        prompts, cut = [], set()
        for request in requests:
            prompt, params = request.prompt, request.params
            params.require_vocabulary(self.tokenizer.vocab_size, self.config.vocab_size)
            if isinstance(prompt, str):
                if prompt not in ids_of:
                    ids_of[prompt] = _encoded(self.tokenizer, prompt, "prompt")
                ids = ids_of[prompt]
            else:
                ids = self._check_ids(prompt)
            longest = self.config.n_positions - params.max_new_tokens
            require(
                longest > 0 and not longest < len(ids) <= self.config.n_positions,
                f"max_new_tokens: {params.max_new_tokens} new tokens after a prompt of {len(ids)} tokens exceed the "
                f"context of {self.config.n_positions}; reduce max_new_tokens or shorten the prompt",
            )
            if len(ids) > longest:
                cut.add((len(ids), longest, tuple(ids[:8])))
            prompts.append(ids[-longest:])
        for length, longest, _ in sorted(cut):
            log.warning(f"a prompt of {length} tokens exceeds the context; only its last {longest} tokens are used")
        return prompts

    def _check_ids(self, ids: Sequence[int]) -> list[int]:
        require(bool(ids), "prompt: must not be empty")
        V = self.tokenizer.vocab_size
        invalid = next((id for id in ids if not 0 <= id < V), None)
        require(invalid is None, f"prompt: id {invalid} is not in the vocabulary; ids must be in [0, {V})")
        return list(ids)

    def _submission(self, request: Request, watched: bool = False) -> tuple[Driver, Ticket]:
        """The driver and the ticket of a single request."""
        (ids,), driver = self._prompts([request]), self._driver_for([request])
        return driver, self._ticket(driver.scheduler, request, ids, watched)

    def _ticket(self, scheduler: Scheduler, request: Request, ids: list[int], watched: bool = False) -> Ticket:
        params, stops = request.params, request.params.stops()
        require(
            scheduler.fits(len(ids) + params.max_new_tokens),
            f"max_kv_bytes: {self.max_kv_bytes / GIB:.2f} GiB are too little for one request of {len(ids)} + "
            f"{params.max_new_tokens} tokens; increase it, or reduce max_new_tokens",
        )
        return Ticket(
            ids,
            params,
            Text(self.tokenizer, stops, params.min_new_tokens),
            may_stop=bool(stops),
            sample=request.sample,
            priority=request.priority,
            deadline=None if request.deadline is None else time.monotonic() + request.deadline,
            watched=watched,
        )

    def _completion(self, request: Request, ticket: Ticket) -> Completion:
        assert ticket.reason is not None
        text, count = ticket.text, len(ticket.text.ids)
        scored = ticket.params.logprobs is not None
        return Completion(
            request.prompt if isinstance(request.prompt, str) else self.tokenizer.decode(request.prompt),
            text.text,
            text.ids,
            ticket.reason,
            ticket.logprobs[:count] if scored else None,
            ticket.top_logprobs[:count] if scored else None,
            ticket.proposed,
            ticket.accepted,
        )

    def _engine(self, num_draft_tokens: int = 0) -> Engine:
        networks = [Network(model.config, model.weights) for model in (self, self.draft_model) if model]
        return Engine(
            networks,
            self.mesh,
            vocab_size=self.tokenizer.vocab_size,
            end_ids=self.end_ids,
            num_draft_tokens=num_draft_tokens if self.speculates else 0,
        )

    def _driver_for(self, requests: Sequence[Request]) -> Driver:
        """The driver, whose engine has as many draft tokens as a request wants, unless it is busy with others."""
        wanted = max((request.params.num_draft_tokens for request in requests), default=1) if self.speculates else 0
        with self._choosing_driver:
            current = self._driver
            scheduler = current and current.scheduler
            if scheduler is None or (not scheduler.is_busy and scheduler.engine.num_draft_tokens != wanted):
                engine = self._engine(wanted)
                size = engine.padded_rows(self.max_rows), engine.slots_for(self.config.n_positions)
                gib = engine.kv_bytes(*size) / GIB, self.max_kv_bytes / GIB
                sizes = f"{size[0]} rows of {size[1]:,} tokens need {gib[0]:.1f} GiB of keys and values per device"
                if current is None and gib[0] > gib[1]:
                    log.info(f"{sizes}; since {gib[1]:.1f} GiB are allowed, long requests may have to wait")
                require(
                    not self.fixed_table or gib[0] <= gib[1],
                    f"fixed_table: {sizes}, but max_kv_bytes allows {gib[1]:.1f}; reduce max_rows",
                )
                scheduler = Scheduler(
                    engine,
                    Admission,
                    max_rows=self.max_rows,
                    max_bytes=self.max_kv_bytes,
                    fixed=size if self.fixed_table else None,
                    short=self._short,
                )
                current = self._driver = Driver(scheduler)
            assert current is not None
        return current

    @property
    def _is_cpu(self) -> bool:
        return self.mesh.devices.flat[0].platform == "cpu"

    @property
    def _short(self) -> int:
        """Rounds of a chunk that someone waits for: a round takes long on a CPU, the host's part of a chunk 1 ms."""
        return 1 if self._is_cpu else 4

    def _default_kv_bytes(self) -> float:
        if self._is_cpu:
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2 // self.mesh.devices.size
        memory = (self.mesh.local_devices[0].memory_stats() or {}).get("bytes_limit", math.inf)
        return 0.9 * memory - sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(self.weights))


def tokenizer_of(weights: Weights, model: str | Path) -> Tokenizer:
    """The tokenizer in a model's folder; raises a `UserError` that names `model` if it is missing or does not fit."""
    tokenizer, rows = weights.tokenizer, weights.config.vocab_size
    if tokenizer is None:
        raise UserError(f"{model}: has no tokenizer; add one with codegen-jax convert {model} NEW --tokenizer T")
    require(
        tokenizer.vocab_size <= rows,
        f"{model}: the tokenizer has {tokenizer.vocab_size} ids, but the network only {rows}; use the tokenizer that "
        f"the model was trained with: codegen-jax convert {model} NEW --tokenizer T",
    )
    return tokenizer


def _decoding_config(config: CodeGenConfig, dtype: Any = None) -> CodeGenConfig:
    """The config for decoding: the bias is folded in, and a run's attention backend may not suit short prompts."""
    return replace(config, embedding_bias=False, attention="auto", dtype=dtype or config.dtype)


def _encoded(tokenizer: Tokenizer, text: str, name: str) -> list[int]:
    require(bool(text), f"{name}: must not be empty")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{name}: not valid Unicode ({error.reason} at character {error.start})") from error
    return tokenizer.encode(text)


def _one(requests: list[Request]) -> list[Request]:
    require(len(requests) == 1, f"num_samples: must be 1 for a stream, got {len(requests)}")
    return requests
