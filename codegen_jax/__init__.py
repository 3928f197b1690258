"""CodeGen in JAX: pretrain, fine-tune, convert and run the models of arXiv 2203.13474."""

# This file must also parse on Python 3.6, whose users get the message below instead of a SyntaxError.
import sys

if sys.version_info < (3, 11):  # noqa: UP036 - pip enforces it; a checkout on the path does not
    found = ".".join(map(str, sys.version_info[:3]))
    raise ImportError(f"codegen_jax needs Python 3.11 or later; this is {found}")

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from codegen_jax.config import CodeGenConfig, MeshConfig
from codegen_jax.errors import UserError

if TYPE_CHECKING:
    from codegen_jax.inference.generate import Generator
    from codegen_jax.inference.options import Options

__version__ = "0.1.0"
__all__ = ["CodeGenConfig", "MeshConfig", "Options", "UserError", "load"]


def load(
    model: str | Path,
    dtype: Literal["bfloat16", "float32"] | None = None,
    quantize: Literal["int8"] | None = None,
    mesh: MeshConfig | None = None,
    draft: str | Path | None = None,
    allow_nonfinite: bool = False,
) -> "Generator":
    """Load a model for generation.

    Args:
        model: a hub id ("Salesforce/codegen-350M-mono", or "...@REVISION"), a Hugging Face folder, a run's output
            folder (its latest checkpoint) or one checkpoint's folder.
        dtype: of activations and matrix products; None takes the run's, or float32 for float32 weights and bfloat16
            for 16-bit ones.
        quantize: int8: matrices as int8 with a scale for each output; activations stay in dtype.
        mesh: devices to spread rows (data) and heads (tensor) over; None: the first device.
        draft: speculate with guesses of "lookup" (in prompt and output), or of another model with the same tokenizer,
            which is loaded in the same way. It changes no token.
        allow_nonfinite: take weights that hold NaN or infinity, with a warning; their completions mean nothing.

    Returns:
        A generator: `load("runs/tiny_cpu").generate("def add(a, b):", max_new_tokens=64)` is the completion as text.

    Raises:
        UserError: if there is no such model, its files are damaged, its weights hold NaN or infinity, or an argument is
            of another type.
    """
    from codegen_jax.inference.generate import Generator  # importing jax takes a second; the tokenizing workers skip it

    return Generator.load(model, dtype, quantize, mesh, draft, allow_nonfinite)


def __getattr__(name: str) -> Any:
    if name == "Options":  # likewise
        from codegen_jax.inference.options import Options

        return Options
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
