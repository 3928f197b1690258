"""Options of completions, declared once: validated here, and turned into flags, signatures and traced scalars."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from codegen_jax.errors import require, require_seed
from codegen_jax.fields import check_fields, did_you_mean, documentation
from codegen_jax.renamed import accepts_former_names, current_keywords

if TYPE_CHECKING:
    from codegen_jax.inference.stops import Stops

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are sampled. In a compiled program these are scalars, which may change without recompilation.

    Attributes:
        temperature: divides the logits; 0 is greedy decoding.
        top_p: nucleus sampling: keep the smallest set of tokens with at least this total probability; 1 keeps all.
        top_k: number of most likely tokens to keep; 0 keeps all.
        min_p: keep tokens at least this likely relative to the most likely one; 0 keeps all.
        repetition_penalty: values above 1 make tokens of the prompt and completion less likely.
    """

    temperature: float = 0.2
    top_p: float = 0.95
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


@accepts_former_names
@dataclass(frozen=True, kw_only=True)
class Options(Sampling):
    """How prompts are completed; the defaults are those of the authors' sample.py.

    >>> options = Options(temperature=0, stop="^def ")
    >>> options.max_new_tokens
    128

    Attributes:
        max_new_tokens: maximum number of tokens to generate.
        num_samples: completions per prompt, adjacent in the result; they share one prefill.
        seed: seed for all prompts, or in Python a list with one per prompt; the same seed, prompt and sample number
            give the same completion, regardless of the rest of the batch.
        stop: regular expression (MULTILINE); a completion ends before its first match.
        stop_strings: a completion ends before the first occurrence of any of these strings.
        truncate: codegen truncates a completion as the authors' sample.py does.
        logprobs: also return the log-probabilities of the generated tokens and of the N most likely tokens at each
            position (on the command line only with --json).
        num_draft_tokens: draft tokens per round of speculative decoding.

    Raises:
        UserError: for a value of the wrong type or out of range; the message begins with the field's name.
    """

    max_new_tokens: int = 128
    num_samples: int = 1
    seed: int | Sequence[int] = 0
    stop: str | None = field(default=None, metadata={"metavar": "REGEX"})
    stop_strings: Sequence[str] = field(default=(), metadata={"flag": "--stop-string"})
    truncate: Literal["codegen"] | None = None
    logprobs: int | None = None
    num_draft_tokens: int = 4

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.max_new_tokens > 0, f"max_new_tokens: must be positive, got {self.max_new_tokens}")
        require(
            self.temperature == 0 or self.temperature >= 1e-6,
            f"temperature: must be 0 or at least 0.000001, got {self.temperature}",
        )
        require(0 < self.top_p <= 1, f"top_p: must be above 0 and at most 1, got {self.top_p}")
        require(self.top_k >= 0, f"top_k: must not be negative, got {self.top_k}; 0 keeps all tokens")
        require(0 <= self.min_p <= 1, f"min_p: must be in [0, 1], got {self.min_p}")
        require(self.repetition_penalty > 0, f"repetition_penalty: must be positive, got {self.repetition_penalty}")
        require(self.num_samples > 0, f"num_samples: must be positive, got {self.num_samples}")
        require(self.logprobs is None or self.logprobs >= 0, f"logprobs: must not be negative, got {self.logprobs}")
        require(self.num_draft_tokens > 0, f"num_draft_tokens: must be positive, got {self.num_draft_tokens}")
        for seed in self.seed if isinstance(self.seed, Sequence) else [self.seed]:
            require_seed("seed", seed)
        self.stops()  # reject a bad pattern before a model is loaded

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

    def seeds(self, prompts: int) -> list[int]:
        """One seed for each of `prompts` prompts."""
        seeds = list(self.seed) if isinstance(self.seed, Sequence) else [self.seed] * prompts
        require(
            len(seeds) == prompts, f"seed: must be an integer or a list of {prompts}, one per prompt, got {len(seeds)}"
        )
        return seeds

    def stops(self) -> "Stops":
        """The rules that end a completion."""
        from codegen_jax.inference.stops import Stops  # --help reads this file; it needs neither regex nor numpy

        return Stops(self.stop, self.stop_strings, self.truncate)

    def scalars(self) -> Sampling:
        """The sampling options as NumPy scalars for a compiled program; greedy decoding gets temperature 1."""
        import numpy as np

        values = {f.name: getattr(self, f.name) for f in fields(Sampling)}
        values["temperature"] = self.temperature or 1.0
        values["top_k"] = min(self.top_k, 2**31 - 1)
        return Sampling(**{n: np.int32(x) if n == "top_k" else np.float32(x) for n, x in values.items()})  # pyright: ignore


def accepts_options(method: F) -> F:
    """Show the fields of `Options` in the signature and docstring of a method that accepts them as **options."""
    signature = inspect.signature(method)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    keyword = partial(inspect.Parameter, kind=inspect.Parameter.KEYWORD_ONLY)
    options = [keyword(f.name, default=f.default, annotation=f.type) for f in fields(Options)]
    method.__signature__ = signature.replace(parameters=own + options)  # pyright: ignore[reportFunctionMemberAccess]
    text = "\n".join(f"    {name}: {about}" for name, about in documentation(Options).items())
    method.__doc__ = f"{inspect.getdoc(method)}\n\nOptions:\n{text}"
    return method
