"""From prompts to completions: batching, padding, stop strings and streaming around the on-device decoding loop."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from codegen_jax.config import CodeGenConfig, MeshConfig
from codegen_jax.data.tokenizer import Tokenizer
from codegen_jax.errors import UserError, require
from codegen_jax.fields import check_type
from codegen_jax.inference.decode import (
    CHUNK,
    Program,
    Rows,
    decode,
    extend,
    grow,
    prefill,
    rounded_up,
    slots_for,
    take_rows,
)
from codegen_jax.inference.decode_weights import DecodeWeights, arrange_params, load_weights
from codegen_jax.inference.matrix import Quantize
from codegen_jax.inference.network import Cache, hidden, logits
from codegen_jax.inference.options import Options, accepts_options
from codegen_jax.inference.stops import Stops
from codegen_jax.model.codegen import Params
from codegen_jax.renamed import accepts_former_names
from codegen_jax.sharding import ROWS, make_mesh
from codegen_jax.weights.base import StoredWeights
from codegen_jax.weights.generation_config import end_ids
from codegen_jax.weights.open import open_model

log = logging.getLogger(__name__)

Dtype = Literal["bfloat16", "float32"] | None


@dataclass(frozen=True)
class Completion:
    """One completion of one prompt.

    Attributes:
        prompt: the prompt, decoded if it was given as ids.
        completion: the text after the prompt.
        token_ids: ids of the completion, without eos; with a stop string, up to the token that completed it.
        finish_reason: eos, stop or length.
        logprobs: natural log of the model's probability of each of token_ids, regardless of temperature, top_p and
            top_k.
        top_logprobs: at each position, the most likely ids with their log-probabilities.
        proposed: number of draft tokens.
        accepted: number of draft tokens that were accepted.
    """

    prompt: str
    completion: str
    token_ids: list[int]
    finish_reason: Literal["eos", "stop", "length"]
    logprobs: list[float] | None = None
    top_logprobs: list[dict[int, float]] | None = None
    proposed: int = 0
    accepted: int = 0


@dataclass(frozen=True)
class Score:
    """The log-probabilities that a model assigns to a text.

    Attributes:
        token_ids: ids of the text.
        logprobs: log-probability of each id except the first, given the preceding ids.
        top_logprobs: at the same positions, the most likely ids with their log-probabilities.
    """

    token_ids: list[int]
    logprobs: list[float]
    top_logprobs: list[dict[int, float]]


@dataclass
class Request:
    """One row to decode, and its results so far."""

    prompt: str
    ids: list[int]
    seed: int
    sample: int
    new: list[int] = field(default_factory=list)
    reason: Literal["eos", "stop", "length"] | None = None
    logprobs: list[float] | None = None
    top_logprobs: list[dict[int, float]] | None = None
    proposed: int = 0
    accepted: int = 0


class Turn(NamedTuple):
    """State that `Generator.complete_turn` returns for the next turn.

    Attributes:
        ids: ids of prompt and completion, per row.
        caches: the KV caches of these rows, for the model and the draft model if there is one.
    """

    ids: list[list[int]]
    caches: tuple[Cache, ...]


class Generator:
    """A model and its tokenizer, ready to complete and score texts.

    In the examples of its methods, runs/double is a model that was trained on one function.

    Args:
        config: config of the network.
        weights: weights on `mesh`.
        tokenizer: the model's tokenizer.
        mesh: mesh with the axes data (rows) and tensor (heads and the MLP).
        max_rows: maximum number of rows decoded together; None: 64, or 16 on a CPU, since 64 needed 2.5 GB more at 350M
            (docs/performance.md).
        end_ids: ids that end a completion; None: the tokenizer's.
        draft: enables speculative decoding. "lookup" drafts the tokens that followed an earlier occurrence of the last
            tokens; otherwise a smaller model with the same tokenizer on the same mesh. It saves time and does not
            change the output.

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
    ):
        self.config, self.weights, self.tokenizer, self.mesh = config, weights, tokenizer, mesh
        self.max_rows = max_rows or (16 if mesh.devices.flat[0].platform == "cpu" else 64)
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
        self.compiled: set[Any] = set()

    @classmethod
    def load(
        cls,
        model: str | Path,
        dtype: Dtype = None,
        quantize: Quantize = None,
        mesh: MeshConfig | None = None,
        draft: str | Path | None = None,
        allow_nonfinite: bool = False,
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
        ):
            check_type(name, value, hint)
        weights = open_model(str(model), allow_nonfinite=allow_nonfinite)
        config = _decoding_config(weights.config, dtype)
        tokenizer = tokenizer_of(weights, model)
        devices = make_mesh(mesh) if mesh else make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
        draft_model = (
            None
            if draft is None or draft == "lookup"
            else cls.load(draft, dtype, quantize, mesh, allow_nonfinite=allow_nonfinite)
        )
        arranged = load_weights(weights, config, devices, quantize)
        ends = end_ids(weights.generation_config, tokenizer)
        return cls(
            config, arranged, tokenizer, devices, draft=draft_model or ("lookup" if draft else None), end_ids=ends
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
    def complete(self, prompts: Sequence[str | Sequence[int]], **options: Any) -> list[Completion]:
        """Complete prompts of any length, with num_samples completions per prompt.

        A prompt longer than the context is truncated on the left, with a warning.

        >>> model = codegen_jax.load("runs/double")
        >>> completions = model.complete(["def double(x):", "    return"], temperature=0.8)
        >>> [(completion.prompt, completion.finish_reason) for completion in completions]
        [('def double(x):', 'eos'), ('    return', 'eos')]

        Args:
            prompts: texts or token ids.

        Raises:
            UserError: for an unknown or invalid option, an empty prompt, an id outside the vocabulary, or a prompt that
                fits into the context, but not together with the new tokens.
        """
        chosen = Options.of(options)
        stops, requests = chosen.stops(), self._requests(prompts, chosen)
        for first in range(0, len(requests), self.max_rows):
            for _ in self._run(requests[first : first + self.max_rows], chosen, stops, CHUNK):
                pass
        return [self._completion(request, stops) for request in requests]

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
        """
        chosen = Options.of(options)
        require(chosen.num_samples == 1, f"num_samples: must be 1 for a turn, got {chosen.num_samples}")
        require(len(prompts) <= self.max_rows, f"prompts: at most {self.max_rows} are allowed, got {len(prompts)}")
        stops, requests = chosen.stops(), self._requests(prompts, chosen)
        caches = ()
        for rows in self._run(requests, chosen, stops, CHUNK, before, keep=True):
            caches = (rows.cache, rows.draft_cache)[: 1 + (self.draft_model is not None)]
        after = Turn([request.ids + request.new for request in requests], caches)
        return [self._completion(request, stops) for request in requests], after

    @accepts_options
    def stream(self, prompt: str, **options: Any) -> Iterator[str]:
        """The completion of one prompt in chunks, yielded as soon as their text is final.

        Joined, the chunks equal the result of `generate`.

        >>> model = codegen_jax.load("runs/double")
        >>> for chunk in model.stream("def double(", temperature=0):
        ...     print(chunk, end="", flush=True)
        x):
            return 2 * x
        """
        check_type("prompt", prompt, str)
        chosen = Options.of(options)
        require(chosen.num_samples == 1, f"num_samples: must be 1 for a stream, got {chosen.num_samples}")
        (request,) = self._requests([prompt], chosen)
        return self._stream(request, chosen)

    def _stream(self, request: Request, chosen: Options) -> Iterator[str]:
        stops, shown = chosen.stops(), 0
        for _ in self._run([request], chosen, stops, 1):
            text = self.tokenizer.decode(request.new)
            end = stops.final_length(text)
            if request.reason is None and end > shown:
                yield text[shown:end]
                shown = end
        yield self._completion(request, stops).completion[shown:]

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
            ids = self._encode(text, "text")
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
        padded = np.zeros(
            (self._padded_rows(B), _power_of_two(T - 1) + 1), np.int32
        )  # no other token attends to the last one
        padded[:B, :T] = tokens_BT
        with jax.set_mesh(self.mesh):
            name = f"scoring of {padded.shape[0]} x {padded.shape[1]} tokens"
            arrays = self._call(_logprobs, name, top, self.weights, padded, config=self.config, top=top)
        logprobs, values, ids = (np.asarray(x)[:B, : T - 1] for x in arrays)
        return logprobs, values, ids

    @accepts_former_names
    @accepts_options
    def warmup(self, batch_size: int, prompt_tokens: int, **options: Any) -> None:
        """Compile in advance what `complete` needs for `batch_size` prompts of `prompt_tokens` tokens each.

        >>> codegen_jax.load("runs/double").warmup(batch_size=2, prompt_tokens=8, max_new_tokens=32)
        """
        chosen, context = Options.of(options), self.config.n_positions
        for name, value in (("batch_size", batch_size), ("prompt_tokens", prompt_tokens)):
            check_type(name, value, int)
            require(value > 0, f"{name}: must be positive, got {value}")
        require(
            prompt_tokens + chosen.max_new_tokens <= context,
            f"prompt_tokens: {prompt_tokens} and {chosen.max_new_tokens} new tokens exceed the context of {context}",
        )
        # different prompts, since equal prompts are prefilled only once
        requests = [Request("", [row % self.tokenizer.vocab_size] * prompt_tokens, 0, 0) for row in range(batch_size)]
        with jax.set_mesh(self.mesh):
            decoding = self._start(requests, chosen)
            for length in range(prompt_tokens, prompt_tokens + chosen.max_new_tokens, CHUNK):
                decoding = self._decode(decoding, length, 0, chosen)

    def _requests(self, prompts: Sequence[str | Sequence[int]], options: Options) -> list[Request]:
        check_type("prompts", prompts, Sequence[str | Sequence[int]])
        require(bool(prompts), "prompts: must not be empty")
        require(
            (options.logprobs or 0) <= self.config.vocab_size,
            f"logprobs: must be at most {self.config.vocab_size}, the size of the vocabulary, got {options.logprobs}",
        )
        longest = self.config.n_positions - options.max_new_tokens
        requests = []
        for prompt, seed in zip(prompts, options.seeds(len(prompts)), strict=True):
            ids = self._encode(prompt, "prompt") if isinstance(prompt, str) else self._check_ids(prompt)
            require(
                longest > 0 and (len(ids) <= longest or len(ids) > self.config.n_positions),
                f"max_new_tokens: a prompt of {len(ids)} tokens and {options.max_new_tokens} new tokens exceed the "
                f"context of {self.config.n_positions}; reduce max_new_tokens or shorten the prompt",
            )
            if len(ids) > longest:
                log.warning(
                    f"a prompt of {len(ids)} tokens exceeds the context; only its last {longest} tokens are used"
                )
            text = prompt if isinstance(prompt, str) else self.tokenizer.decode(ids)
            requests += [Request(text, ids[-longest:], seed, number) for number in range(options.num_samples)]
        return requests

    def _check_ids(self, ids: Sequence[int]) -> list[int]:
        require(bool(ids), "prompt: must not be empty")
        V = self.tokenizer.vocab_size
        invalid = next((id for id in ids if not 0 <= id < V), None)
        require(invalid is None, f"prompt: id {invalid} is not in the vocabulary; ids must be in [0, {V})")
        return list(ids)

    def _encode(self, text: str, name: str) -> list[int]:
        require(bool(text), f"{name}: must not be empty")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{name}: not valid Unicode ({error.reason} at character {error.start})") from error
        return self.tokenizer.encode(text)

    def _run(
        self,
        requests: list[Request],
        options: Options,
        stops: Stops,
        chunk: int,
        before: Turn | None = None,
        keep: bool = False,
    ) -> Iterator[Rows]:
        """Decode the requests together; after each `chunk` rounds, update them and yield the rows.

        Args:
            before: the previous turn, if any.
            keep: also keep rows that have ended.
        """
        live = list(requests)
        with jax.set_mesh(self.mesh):
            rows = self._start(live, options, before)
        while live:
            longest = max(len(request.ids) + len(request.new) for request in live)
            with jax.set_mesh(self.mesh):
                rows = self._decode(rows, longest, chunk, options)
                live, rows = self._collect(live, rows, options, stops, keep)
            yield rows

    def _num_draft_tokens(self, options: Options) -> int:
        return options.num_draft_tokens if self.speculates else 0

    def _decode(self, rows: Rows, longest: int, rounds: int, options: Options) -> Rows:
        """Decode `rounds` rounds, adding slots if needed; `longest` is the length of the longest row."""
        draft, num_draft_tokens = self.draft_model, self._num_draft_tokens(options)
        program = Program.of(
            options,
            self.config,
            vocab_size=self.tokenizer.vocab_size,
            end_ids=self.end_ids,
            draft=draft.config if draft else None,
            num_draft_tokens=num_draft_tokens,
        )
        slots = rows.tokens_BS.shape[1]
        if (needed := slots_for(longest, num_draft_tokens)) > slots:  # at least double, to compile few programs
            largest = slots_for(self.config.n_positions, num_draft_tokens)
            rows = grow(rows, slots=max(needed, min(2 * slots, largest)))
        return self._call(
            decode,
            f"decode of {len(rows.done_B)} row(s) x {rows.tokens_BS.shape[1]} slots",
            program,
            self.weights,
            draft.weights if draft else None,
            rows,
            options.scalars(),
            np.int32(rounds),
            program=program,
        )

    def _start(self, requests: list[Request], options: Options, before: Turn | None = None) -> Rows:
        """One row per request, with its prompt's KV cache; rows that pad the batch size are marked as done."""
        B, longest = self._padded_rows(len(requests)), max(len(request.ids) for request in requests)
        slots, known_B = slots_for(longest, self._num_draft_tokens(options)), self._cached_lengths(requests, before, B)
        if before is None or known_B is None:
            caches = self._prefill(requests, B, slots)
        else:
            caches, slots = self._extend(requests, before, known_B, slots)
        filled = [*requests, *[requests[0]] * (B - len(requests))]
        tokens_BS = np.zeros((B, slots), np.int32)
        for row, request in enumerate(filled):
            tokens_BS[row, : len(request.ids)] = request.ids
        lengths_B = np.array([len(request.ids) for request in filled], np.int32)
        logprob_slots, top = (0, 0) if options.logprobs is None else (slots, options.logprobs)
        values: dict[str, Any] = dict(
            tokens_BS=tokens_BS,
            length_B=lengths_B,
            prompt_B=lengths_B,
            limit_B=lengths_B + options.max_new_tokens,
            done_B=np.arange(B) >= len(requests),
            seed_B=np.array([request.seed for request in filled], np.uint32),
            sample_B=np.array([request.sample for request in filled], np.uint32),
            cache=(),
            draft_cache=(),
            logprobs_BS=np.zeros((B, logprob_slots), np.float32),
            top_logprobs_BSN=np.zeros((B, logprob_slots, top), np.float32),
            top_ids_BSN=np.zeros((B, logprob_slots, top), np.int32),
            proposed_B=np.zeros(B, np.int32),
            accepted_B=np.zeros(B, np.int32),
        )
        rows = Rows(**self._replicate(values))
        return rows._replace(cache=caches[0], draft_cache=caches[1] if self.draft_model else ())

    def _prefill(self, requests: list[Request], B: int, slots: int) -> list[Cache]:
        """The KV caches of B rows; equal prompts are computed only once."""
        prompts = list(dict.fromkeys(tuple(request.ids) for request in requests))
        longest = max(map(len, prompts))
        tokens_PT = np.zeros((self._padded_rows(len(prompts)), min(rounded_up(longest, 16), slots)), np.int32)
        for row, ids in enumerate(prompts):
            tokens_PT[row, : len(ids)] = ids
        caches = [
            self._call(
                prefill,
                f"prefill of {tokens_PT.shape[0]} x {tokens_PT.shape[1]} tokens",
                (slots, model.config),
                model.weights,
                tokens_PT,
                config=model.config,
                slots=slots,
            )
            for model in self._models
        ]
        index_B = np.zeros(B, np.int32)
        index_B[: len(requests)] = [prompts.index(tuple(request.ids)) for request in requests]
        if len(tokens_PT) != B or (index_B != np.arange(B)).any():
            caches = [take_rows(cache, index_B) for cache in caches]
        return caches

    def _cached_lengths(self, requests: list[Request], before: Turn | None, B: int) -> np.ndarray | None:
        """Number of leading tokens of each row in the previous turn's cache; None if half or less is cached."""
        if before is None:
            return None
        require(
            len(requests) == len(before.ids),
            f"prompts: expected {len(before.ids)}, as in the previous turn, got {len(requests)}",
        )
        known_B = np.zeros(B, np.int32)
        for row, (request, ids) in enumerate(zip(requests, before.ids)):
            # the cache lacks the last token, and a draft model's cache may also lack the one before it
            pairs = zip(request.ids, ids[:-2])
            known_B[row] = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(request.ids), len(ids) - 2))
        return known_B if 2 * known_B.sum() > sum(len(request.ids) for request in requests) else None

    def _extend(
        self, requests: list[Request], before: Turn, known_B: np.ndarray, slots: int
    ) -> tuple[list[Cache], int]:
        """The previous turn's caches extended by the new tokens of each row, and their number of slots."""
        T = rounded_up(max(len(request.ids) - known for request, known in zip(requests, known_B.tolist())), 16)
        tokens_BT = np.zeros((len(known_B), T), np.int32)
        for row, (request, known) in enumerate(zip(requests, known_B)):
            new = request.ids[known:]
            tokens_BT[row, : len(new)] = new
        # padding is written, too; without slots for it, the write would be shifted back onto known tokens
        slots = max(slots, before.caches[0][0][1].shape[2], slots_for(int(known_B.max()) + T, 0))
        name = f"prefill of {len(known_B)} x {T} additional tokens"
        return [
            self._call(
                extend,
                name,
                (slots, cache[0][1].shape[2], model.config),
                model.weights,
                cache,
                tokens_BT,
                known_B,
                config=model.config,
                slots=slots,
            )
            for model, cache in zip(self._models, before.caches, strict=True)
        ], slots

    @property
    def _models(self) -> "list[Generator]":
        """The model, and the draft model if there is one."""
        return [self, *([self.draft_model] if self.draft_model else [])]

    def _collect(
        self, live: list[Request], rows: Rows, options: Options, stops: Stops, keep: bool
    ) -> tuple[list[Request], Rows]:
        """Fetch new tokens from the device, end requests that stop, and drop rows when half of them have ended.

        Args:
            keep: drop no rows.
        """
        names = ("tokens_BS", "length_B", "done_B", "proposed_B", "accepted_B")
        names += () if options.logprobs is None else ("logprobs_BS", "top_logprobs_BSN", "top_ids_BSN")
        fetched = dict(zip(names, jax.device_get([getattr(rows, name) for name in names])))
        for row, request in enumerate(live):
            if request.reason is not None:
                continue
            start, stop = len(request.ids), int(fetched["length_B"][row])
            before, request.new = len(request.new), fetched["tokens_BS"][row, start:stop].tolist()
            request.proposed, request.accepted = int(fetched["proposed_B"][row]), int(fetched["accepted_B"][row])
            if options.logprobs is not None:
                request.logprobs = fetched["logprobs_BS"][row, start:stop].tolist()
                ids, values = (fetched[name][row, start:stop].tolist() for name in ("top_ids_BSN", "top_logprobs_BSN"))
                request.top_logprobs = [dict(zip(*pair)) for pair in zip(ids, values)]
            if request.new and request.new[-1] in self.end_ids:
                request.new, request.reason = request.new[:-1], "eos"
            elif fetched["done_B"][row]:
                request.reason = "length"
            self._stop(request, before, stops)
        alive = [row for row, request in enumerate(live) if request.reason is None]
        if not alive:
            return [], rows
        B = self._padded_rows(len(alive))
        done_B = np.ones(len(rows.done_B), bool)
        done_B[alive] = False
        rows = rows._replace(done_B=self._replicate(done_B))
        if len(rows.done_B) > B and not keep:
            index_B = np.array(alive + [int(np.argmax(done_B))] * (B - len(alive)), np.int32)
            return [live[row] for row in alive], take_rows(rows, index_B)
        return live, rows

    def _stop(self, request: Request, before: int, stops: Stops) -> None:
        """End a request at the first token that completes a stop string."""
        ends = lambda count: stops.end(self.tokenizer.decode(request.new[:count])) is not None
        if not stops or not (stops.may_unmatch or ends(len(request.new))):
            return
        count = next((count for count in range(before + 1, len(request.new) + 1) if ends(count)), None)
        if count is not None:
            request.new, request.reason = request.new[:count], "stop"

    def _completion(self, request: Request, stops: Stops) -> Completion:
        text = self.tokenizer.decode(request.new)
        if request.reason == "stop":
            text = text[: stops.end(text)]
        assert request.reason is not None
        count = len(request.new)
        return Completion(
            request.prompt,
            text,
            request.new,
            request.reason,
            request.logprobs and request.logprobs[:count],
            request.top_logprobs and request.top_logprobs[:count],
            request.proposed,
            request.accepted,
        )

    def _replicate(self, tree: Any) -> Any:
        """Replicate over all devices, as `decode` does with its results; any other sharding would recompile it."""
        return jax.device_put(tree, NamedSharding(self.mesh, P()))

    def _padded_rows(self, count: int) -> int:
        """The padded number of rows: a power of two per shard of the rows."""
        shards = int(np.prod([self.mesh.shape[axis] for axis in ROWS]))
        return shards * _power_of_two(-(-count // shards), minimum=1)

    def _call(self, function: Callable[..., Any], name: str, static: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a jitted function, and log its compilation if it took over a second."""
        key = (name, static)
        began = time.perf_counter()
        result = function(*args, **kwargs)
        if key not in self.compiled:
            self.compiled.add(key)
            if (seconds := time.perf_counter() - began) > 1:
                log.info(f"compiled {name} in {seconds:.1f} s")
        return result


def tokenizer_of(weights: StoredWeights, model: str | Path) -> Tokenizer:
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


def _power_of_two(count: int, minimum: int = 16) -> int:
    return max(minimum, 1 << (count - 1).bit_length())


@partial(jax.jit, static_argnames=("config", "top"))
def _logprobs(
    weights: DecodeWeights, tokens_BT: jax.Array, *, config: CodeGenConfig, top: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x_BTD, _ = hidden(weights, config, tokens_BT[:, :-1])

    def score_row(row: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        x_TD, next_T = row  # one row's logits at a time
        logprobs_TV = jax.nn.log_softmax(logits(weights, x_TD))
        return jnp.take_along_axis(logprobs_TV, next_T[:, None], axis=-1)[:, 0], *jax.lax.top_k(logprobs_TV, top)

    return jax.lax.map(score_row, (x_BTD, tokens_BT[:, 1:]))
