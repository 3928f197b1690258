"""A model behind lm-evaluation-harness' interface: log-likelihoods of continuations and texts, and completions."""

import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from codegen_jax.errors import UserError, require
from codegen_jax.evaluation.perplexity import ROWS
from codegen_jax.inference.generator import Generator
from codegen_jax.inference.request import Options
from codegen_jax.progress import Progress
from codegen_jax.strict_json import dumps

log = logging.getLogger(__name__)

SEED = 1234  # lm_eval's default for few-shot examples
NEW_TOKENS = 256  # if a task sets no max_gen_toks, as in lm_eval's own models
GENERATION_KWARGS = ("do_sample", "temperature", "top_p", "top_k", "until", "max_gen_toks")
LM_EVAL_NAMES = {"stop_strings": "until", "max_new_tokens": "max_gen_toks"}  # lm_eval's name for each of our options


class HarnessModel(TemplateLM):
    """A loaded model behind lm_eval's interface. Its results match those of lm_eval's HFLM on the same weights.

    >>> lm_eval.simple_evaluate(HarnessModel(codegen_jax.load("runs/tiny_cpu")), tasks=["arc_easy"])

    Args:
        model: its end-of-text token is prepended to requests without a context.
        seed: seed for sampled completions.

    Raises:
        UserError: if the tokenizer has no end-of-text token.
    """

    def __init__(self, model: Generator, seed: int = SEED):
        super().__init__()
        require(model.tokenizer.eos_id >= 0, "model: its tokenizer has no end-of-text token; use a model that has one")
        self.model, self.seed, self.max_length = model, seed, model.config.n_positions

    @property
    def eot_token_id(self) -> int:
        return self.model.tokenizer.eos_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        return self.model.tokenizer.encode(string)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """The log-likelihood of each continuation given its context, and whether greedy decoding would produce it.

        Args:
            requests: each has the `arguments` (context, continuation).

        Raises:
            UserError: if a continuation is empty or longer than the model's context.
        """
        for request in requests:
            require(
                any(request.arguments), "tasks: a request has neither context nor continuation; fix the task's data"
            )
        return super().loglikelihood(requests, disable_tqdm=True)  # its progress bar covers the encoding only

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        rows: list[list[int]] = []
        for (_, text), before, continuation in requests:
            require(bool(continuation), "tasks: a continuation is empty; fix the task's data")
            require(
                len(continuation) <= self.max_length,
                f"tasks: a continuation of {len(continuation)} tokens is longer than the model's context of "
                f"{self.max_length} ({text[:40]!r}...); shorten it, or use a model with a longer context",
            )
            # lm_eval moves a context's trailing spaces to the continuation, so the context may be empty now
            rows.append([*(before or [self.prefix_token_id]), *continuation])
        cut = sum(len(row) > self.max_length + 1 for row in rows)
        if cut:
            log.warning(f"{cut} of {len(rows)} requests exceed the model's context and are truncated from the left")
        rows = [row[-self.max_length - 1 :] for row in rows]
        answers: dict[int, tuple[float, bool]] = {}
        with Progress("scoring", len(rows), "request") as progress:
            for batch in batches([len(row) - 1 for row in rows], self.model.max_rows, ROWS * self.max_length):
                tokens_BT = np.zeros((len(batch), len(rows[batch[0]])), np.int32)
                for b, number in enumerate(batch):
                    tokens_BT[b, : len(rows[number])] = rows[number]
                logprobs_BT, _, likeliest_BT1 = self.model.logprobs(tokens_BT, top=1)
                is_likeliest_BT = likeliest_BT1[..., 0] == tokens_BT[:, 1:]
                for b, number in enumerate(batch):
                    end = len(rows[number]) - 1
                    scored = slice(end - len(requests[number][2]), end)
                    total = logprobs_BT[b, scored].sum(dtype=np.float64)
                    answers[number] = float(total), bool(is_likeliest_BT[b, scored].all())
                progress.update(len(batch))
        return [answers[number] for number in range(len(rows))]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each whole text, in windows of the context length; each token is scored exactly once.

        Args:
            requests: each has the `arguments` (text,).
        """
        windows, owners = [], []
        for owner, request in enumerate(requests):
            ids = self.tok_encode(request.arguments[0])
            for window in get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1):
                windows.append((("", ""), *make_disjoint_window(window)))
                owners.append(owner)
        totals = [0.0] * len(requests)
        for owner, (logprob, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[owner] += logprob
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The completion of each context up to the task's stop strings; repeated instances get different samples.

        Args:
            requests: each has the `arguments` (context, generation kwargs).

        Raises:
            UserError: if generation kwargs are unknown or invalid, or leave no room for a prompt.
        """
        by_kwargs: defaultdict[str, list[int]] = defaultdict(list)
        repeats: Counter[Any] = Counter()
        seeds = []
        for number, request in enumerate(requests):
            by_kwargs[dumps(request.arguments[1])].append(number)
            document = request.task_name, request.doc_id, request.idx
            seeds.append(sample_seed(self.seed, document, repeats[document]))
            repeats[document] += 1
        texts: dict[int, str] = {}
        with Progress("completing", len(requests), "completion") as progress:
            for numbers in by_kwargs.values():
                options = options_of(
                    requests[numbers[0]].arguments[1], self.model.tokenizer.decode([self.eot_token_id])
                )
                room = self.max_length - options["max_new_tokens"]
                require(
                    room > 0,
                    f"tasks: max_gen_toks = {options['max_new_tokens']} leaves no room for a prompt in the model's "
                    f"context of {self.max_length}; set it in the task's generation_kwargs",
                )
                prompts = [self.tok_encode(requests[n].arguments[0]) or [self.prefix_token_id] for n in numbers]
                cut = sum(len(prompt) > room for prompt in prompts)
                if cut:
                    log.warning(
                        f"{cut} of {len(prompts)} prompts leave no room for max_gen_toks and are truncated from the "
                        "left"
                    )
                prompts = [prompt[-room:] for prompt in prompts]
                completions = self.model.complete(
                    prompts, lambda *_: progress.update(), seed=[seeds[number] for number in numbers], **options
                )
                texts |= {number: found.completion for number, found in zip(numbers, completions, strict=True)}
        return [texts[number] for number in range(len(requests))]


def batches(lengths: Sequence[int], rows: int, tokens: int | None = None) -> Iterator[list[int]]:
    """Indices of sequences in batches of similar length, longest first, so the first batch needs the most memory.

    Args:
        rows: maximum number of rows per batch.
        tokens: maximum number of tokens per batch, including padding.
    """
    order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    while order:
        fit = rows if tokens is None else max(1, tokens // lengths[order[0]])
        count = min(rows, 1 << fit.bit_length() - 1)  # compiled batch sizes are powers of two
        yield order[:count]
        order = order[count:]


def options_of(generation_kwargs: Mapping[str, Any], end_of_text: str) -> dict[str, Any]:
    """A task's generation_kwargs as options of `Generator.complete`. Without top_p and top_k, no token is excluded.

    Raises:
        UserError: for an unknown name or an invalid value.
    """
    try:
        kwargs: dict[str, Any] = dict(normalize_gen_kwargs(dict(generation_kwargs), NEW_TOKENS))
    except (TypeError, ValueError) as error:
        raise UserError(f"tasks: generation_kwargs: {error}; fix the task's YAML") from error
    for name in kwargs:
        known = ", ".join(GENERATION_KWARGS)
        require(name in GENERATION_KWARGS, f"tasks: generation_kwargs: {name} is not supported; supported: {known}")
    temperature = float(kwargs.get("temperature") or 0)  # normalized: 0 if do_sample is false
    require(
        temperature > 0 or not kwargs["do_sample"],
        "tasks: generation_kwargs: do_sample needs a temperature above 0; set one, or remove do_sample",
    )
    options = {
        "temperature": temperature,
        "top_p": 1.0 if kwargs.get("top_p") is None or not temperature else kwargs["top_p"],
        "top_k": kwargs.get("top_k") or 0 if temperature else 0,
        "max_new_tokens": kwargs["max_gen_toks"],
        "stop_strings": (*kwargs["until"], end_of_text),
    }
    try:
        Options.of(options)
    except UserError as error:
        field, colon, rest = str(error).partition(":")
        raise UserError(f"tasks: generation_kwargs: {LM_EVAL_NAMES.get(field, field)}{colon}{rest}") from error
    return options


def sample_seed(seed: int, document: tuple[Any, ...], repeat: int) -> int:
    """The seed of a completion. It depends only on seed, document and repeat, and differs for each repeat."""
    digest = hashlib.sha256(f"{seed} {document}".encode()).digest()
    return (int.from_bytes(digest[:4], "big") + repeat) % 2**32
