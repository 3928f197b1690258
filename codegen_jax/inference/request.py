"""What is asked of a model, per request, and what comes back: checked here, and turned into flags and signatures."""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from codegen_jax.errors import require, require_seed
from codegen_jax.fields import check_fields, check_type, did_you_mean, documentation
from codegen_jax.renamed import accepts_former_names, current_keywords

if TYPE_CHECKING:
    from codegen_jax.inference.text import Stops

F = TypeVar("F", bound=Callable[..., Any])
FinishReason = Literal["eos", "stop", "length", "cancelled", "deadline"]


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How one request is completed; the defaults are those of the authors' sample.py.

    Requests with different settings share a batch: on the device, every setting is a row of an array.

    >>> SamplingParams(temperature=0, stop="^def ").max_new_tokens
    128

    Attributes:
        temperature: divides the logits; 0 is greedy decoding.
        top_p: nucleus sampling: keep the smallest set of tokens with at least this total probability; 1 keeps all.
        top_k: number of most likely tokens to keep; 0 keeps all.
        min_p: keep tokens at least this likely relative to the most likely one; 0 keeps all.
        repetition_penalty: values above 1 make tokens of the prompt and completion less likely.
        presence_penalty: subtracted from the logits of tokens that occur in the completion.
        frequency_penalty: subtracted from a token's logit for each time that it occurs in the completion.
        logit_bias: added to the logits of these ids.
        max_new_tokens: maximum number of tokens to generate.
        min_new_tokens: neither eos nor a stop ends a completion before it has this many tokens.
        ignore_eos: complete past eos, which then is a token like any other.
        seed: the same seed, prompt and sample number give the same completion, regardless of other requests.
        stop: regular expression (MULTILINE); a completion ends before its first match.
        stop_strings: a completion ends before the first occurrence of any of these strings.
        truncate: codegen truncates a completion as the authors' sample.py does.
        logprobs: also return the log-probabilities of the generated tokens and of the N most likely tokens at each
            position (on the command line only with --json).
        num_draft_tokens: draft tokens per round of speculative decoding.

    Raises:
        UserError: for a value of the wrong type or out of range; the message begins with the field's name.
    """

    temperature: float = 0.2
    top_p: float = 0.95
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict, metadata={"metavar": "ID=BIAS"})
    max_new_tokens: int = 128
    min_new_tokens: int = 0
    ignore_eos: bool = False
    seed: int = 0
    stop: str | None = field(default=None, metadata={"metavar": "REGEX"})
    stop_strings: Sequence[str] = field(default=(), metadata={"flag": "--stop-string"})
    truncate: Literal["codegen"] | None = None
    logprobs: int | None = None
    num_draft_tokens: int = 4

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.max_new_tokens > 0, f"max_new_tokens: must be positive, got {self.max_new_tokens}")
        require(
            0 <= self.min_new_tokens <= self.max_new_tokens,
            f"min_new_tokens: must be between 0 and max_new_tokens = {self.max_new_tokens}, got {self.min_new_tokens}",
        )
        require(
            self.temperature == 0 or self.temperature >= 1e-6,
            f"temperature: must be 0 or at least 0.000001, got {self.temperature}",
        )
        require(0 < self.top_p <= 1, f"top_p: must be above 0 and at most 1, got {self.top_p}")
        require(self.top_k >= 0, f"top_k: must not be negative, got {self.top_k}; 0 keeps all tokens")
        require(0 <= self.min_p <= 1, f"min_p: must be in [0, 1], got {self.min_p}")
        require(self.repetition_penalty > 0, f"repetition_penalty: must be positive, got {self.repetition_penalty}")
        wrong = next((bias for bias in self.logit_bias.values() if not math.isfinite(bias)), None)
        require(wrong is None, f"logit_bias: must be finite, got {wrong}")
        require(self.logprobs is None or self.logprobs >= 0, f"logprobs: must not be negative, got {self.logprobs}")
        require(self.num_draft_tokens > 0, f"num_draft_tokens: must be positive, got {self.num_draft_tokens}")
        for seed in self.seed if isinstance(self.seed, Sequence) else [self.seed]:
            require_seed("seed", seed)
        self.stops()  # reject a bad pattern before a model is loaded

    def stops(self) -> "Stops":
        """The rules that end a completion."""
        from codegen_jax.inference.text import Stops  # --help reads this file; it needs neither regex nor numpy

        return Stops(self.stop, self.stop_strings, self.truncate)

    @property
    def adjusts_logits(self) -> bool:
        """Whether logits change before a token is chosen, by penalties, biases or a minimum length."""
        penalties = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty)
        return penalties != (1, 0, 0) or bool(self.logit_bias) or self.min_new_tokens > 0

    def require_vocabulary(self, ids: int, rows: int) -> None:
        """Raise `UserError` if a bias or the log-probabilities need more ids than a model has.

        Args:
            ids: the number of ids of the tokenizer.
            rows: the number of logits of the network.
        """
        require((self.logprobs or 0) <= rows, f"logprobs: must be at most {rows}, the size of the vocabulary")
        invalid = next((id for id in self.logit_bias if not 0 <= id < ids), None)
        require(invalid is None, f"logit_bias: id {invalid} is not in the vocabulary; ids must be in [0, {ids})")


@accepts_former_names
@dataclass(frozen=True, kw_only=True)
class Options(SamplingParams):
    """How prompts are completed: `SamplingParams` for all prompts of a call, and the number of samples of each.

    >>> options = Options(temperature=0, stop="^def ")
    >>> options.max_new_tokens
    128

    Attributes:
        num_samples: completions per prompt, adjacent in the result; they share one prefill.
        seed: seed for all prompts, or in Python a list with one per prompt; the same seed, prompt and sample number
            give the same completion, regardless of the rest of the batch.

    Raises:
        UserError: for a value of the wrong type or out of range; the message begins with the field's name.
    """

    num_samples: int = 1
    seed: int | Sequence[int] = 0  # pyright: ignore[reportIncompatibleVariableOverride]

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.num_samples > 0, f"num_samples: must be positive, got {self.num_samples}")

    @classmethod
    def of(cls, options: dict[str, Any]) -> "Options":
        """Build `Options` from a dict of names and values.

        Raises:
            UserError: for an unknown name or an invalid value.
        """
        known = [f.name for f in fields(cls)]
        options = current_keywords(options, known)
        for name in options:
            require(
                name in known,
                f"{name}: no such option{did_you_mean(name, known) or '; the options are ' + ', '.join(known)}",
            )
        return cls(**options)

    def requests(self, prompts: Sequence[str | Sequence[int]]) -> list["Request"]:
        """The requests for these prompts, `num_samples` for each."""
        check_type("prompts", prompts, Sequence[str | Sequence[int]])
        require(bool(prompts), "prompts: must not be empty")
        seeds = list(self.seed) if isinstance(self.seed, Sequence) else [self.seed] * len(prompts)
        require(
            len(seeds) == len(prompts),
            f"seed: must be an integer or a list of {len(prompts)}, one per prompt, got {len(seeds)}",
        )
        names = [f.name for f in fields(SamplingParams) if f.name != "seed"]
        settings = {name: getattr(self, name) for name in names}
        return [
            Request(prompt=prompt, params=params, sample=number)
            for prompt, seed in zip(prompts, seeds)
            for params in [SamplingParams(seed=seed, **settings)]
            for number in range(self.num_samples)
        ]


@dataclass(frozen=True, kw_only=True)
class Request:
    """One completion to generate.

    >>> Request(prompt="def double(x):", params=SamplingParams(temperature=0), priority=1).sample
    0

    Attributes:
        prompt: the text or the token ids to complete.
        params: how it is completed.
        sample: the sample number; different numbers give different samples of the same prompt and seed.
        priority: waiting requests with a higher priority start first; equal ones in the order of their arrival.
        deadline: seconds after which the request ends with the tokens that it has; None: no limit.

    Raises:
        UserError: for a value of the wrong type or out of range; the message begins with the field's name.
    """

    prompt: str | Sequence[int]
    params: SamplingParams = field(default_factory=SamplingParams)
    sample: int = 0
    priority: int = 0
    deadline: float | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.sample >= 0, f"sample: must not be negative, got {self.sample}")
        require(self.deadline is None or self.deadline > 0, f"deadline: must be positive, got {self.deadline}")


@dataclass(frozen=True)
class Completion:
    """One completion of one prompt.

    Attributes:
        prompt: the prompt, decoded if it was given as ids.
        completion: the text after the prompt.
        token_ids: ids of the completion, without eos; with a stop string, up to the token that completed it.
        finish_reason: eos, stop or length; cancelled or deadline if the request ended before its completion did.
        logprobs: natural log of the model's probability of each of token_ids, regardless of other settings.
        top_logprobs: at each position, the most likely ids with their log-probabilities.
        proposed: number of draft tokens.
        accepted: number of draft tokens that were accepted.
    """

    prompt: str
    completion: str
    token_ids: list[int]
    finish_reason: FinishReason
    logprobs: list[float] | None = None
    top_logprobs: list[dict[int, float]] | None = None
    proposed: int = 0
    accepted: int = 0


def accepts_options(method: F) -> F:
    """Show the fields of `Options` in the signature and docstring of a method that accepts them as **options."""
    signature = inspect.signature(method)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    keyword = partial(inspect.Parameter, kind=inspect.Parameter.KEYWORD_ONLY)
    options = [keyword(f.name, default=_default(f), annotation=f.type) for f in fields(Options)]
    method.__signature__ = signature.replace(parameters=own + options)  # pyright: ignore[reportFunctionMemberAccess]
    text = "\n".join(f"    {name}: {about}" for name, about in documentation(Options).items())
    method.__doc__ = f"{inspect.getdoc(method)}\n\nOptions:\n{text}"
    return method


def _default(option: Any) -> Any:
    return {} if option.name == "logit_bias" else option.default
