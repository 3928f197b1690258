"""Options for completions, declared once: validated here, and turned into flags, signatures and traced scalars."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from codegen_jax.errors import require, require_seed
from codegen_jax.fields import check_fields, did_you_mean, documentation

if TYPE_CHECKING:
    from codegen_jax.inference.stops import Stops

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a token is sampled. Inside a compiled program these are scalars, which may change without recompilation.

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


@dataclass(frozen=True, kw_only=True)
class Options(Sampling):
    """How prompts are completed; the defaults are those of the authors' sample.py.

    >>> Options(max_new_tokens=64, temperature=0, stop="^def ")

    Attributes:
        max_new_tokens: maximum number of tokens to generate.
        num_samples: completions per prompt, adjacent in the result; they share one prefill.
        seed: seed for all prompts, or in Python a list with one per prompt. The same seed, prompt and sample number
            give the same completion, whatever else is in the batch.
        stop: regular expression (MULTILINE); a completion ends before its first match.
        stop_strings: a completion ends before the first occurrence of any of these strings.
        truncate: codegen ends a completion where the authors' sample.py does.
        logprobs: also return log-probabilities of the generated tokens and of this many most likely tokens at each
            position (the command prints them with --json).
        num_guesses: draft tokens per round, if the generator has a draft model or lookup.

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
    num_guesses: int = 4

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.max_new_tokens > 0, f"max_new_tokens: {self.max_new_tokens} must be positive")
        require(
            self.temperature == 0 or self.temperature >= 1e-6,
            f"temperature: {self.temperature} must be 0, or from 0.000001 on",
        )
        require(0 < self.top_p <= 1, f"top_p: {self.top_p} must be above 0 and at most 1")
        require(self.top_k >= 0, f"top_k: {self.top_k} must not be negative; 0 keeps all")
        require(0 <= self.min_p <= 1, f"min_p: {self.min_p} must be in [0, 1]")
        require(self.repetition_penalty > 0, f"repetition_penalty: {self.repetition_penalty} must be positive")
        require(self.num_samples > 0, f"num_samples: {self.num_samples} must be positive")
        require(self.logprobs is None or self.logprobs >= 0, f"logprobs: {self.logprobs} must not be negative")
        require(self.num_guesses > 0, f"num_guesses: {self.num_guesses} must be positive")
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
        for name in options:
            require(
                name in known,
                f"{name}: no such option{did_you_mean(name, known) or '; there are ' + ', '.join(known)}",
            )
        return cls(**options)

    def seeds(self, prompts: int) -> list[int]:
        """One seed for each of `prompts` prompts."""
        seeds = list(self.seed) if isinstance(self.seed, Sequence) else [self.seed] * prompts
        require(len(seeds) == prompts, f"seed: {len(seeds)} seeds for {prompts} prompts")
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


def takes_options(method: F) -> F:
    """Show the fields of `Options` in the signature and docstring of a method that accepts them as **options."""
    signature = inspect.signature(method)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    keyword = partial(inspect.Parameter, kind=inspect.Parameter.KEYWORD_ONLY)
    options = [keyword(f.name, default=f.default, annotation=f.type) for f in fields(Options)]
    method.__signature__ = signature.replace(parameters=own + options)  # pyright: ignore[reportFunctionMemberAccess]
    described = "\n".join(f"    {name}: {text}" for name, text in documentation(Options).items())
    method.__doc__ = f"{inspect.getdoc(method)}\n\nOptions:\n{described}"
    return method
