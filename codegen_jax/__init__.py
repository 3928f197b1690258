"""CodeGen in JAX: pretrain, fine-tune, convert and run the models of arXiv 2203.13474."""

# This file must also parse on Python 3.6, whose users get the message below instead of a SyntaxError.
import sys

if sys.version_info < (3, 11):  # noqa: UP036 - pip enforces it; a checkout on the path does not
    found = ".".join(map(str, sys.version_info[:3]))
    raise ImportError(f"codegen_jax needs Python 3.11 or later; this is {found}")

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from codegen_jax.config import CodeGenConfig, MeshConfig
from codegen_jax.errors import UserError

if TYPE_CHECKING:
    from codegen_jax.inference.generator import Generator
    from codegen_jax.inference.request import Options, Request, SamplingParams

__version__ = "0.1.0"
__all__ = ["CodeGenConfig", "MeshConfig", "Options", "Request", "SamplingParams", "UserError", "load"]


def load(
    model: str | Path,
    dtype: Literal["bfloat16", "float32"] | None = None,
    quantize: Literal["int8"] | None = None,
    mesh: MeshConfig | None = None,
    draft: str | Path | None = None,
    allow_nonfinite: bool = False,
    max_rows: int | None = None,
    max_kv_bytes: int | None = None,
    fixed_table: bool = False,
    adapters: Sequence[str | Path] = (),
) -> "Generator":
    """Load a model for generation.

    >>> model = codegen_jax.load("runs/double", draft="lookup")  # this model was trained on one function
    >>> print("def double(x):" + model.generate("def double(x):", max_new_tokens=64, temperature=0))
    def double(x):
        return 2 * x

    Args:
        model: a hub id ("Salesforce/codegen-350M-mono", or "...@REVISION"), a Hugging Face folder, a run's output
            folder (its latest checkpoint) or one checkpoint's folder.
        dtype: dtype of activations and matrix products. None: the run's dtype; for other models, float32 if the weights
            are float32 and bfloat16 if they are 16-bit.
        quantize: "int8" stores matrices in int8 with one scale per output channel; activations stay in dtype.
        mesh: number of devices that share the rows of a batch (data) and the heads (tensor); None: the first device.
        draft: enables speculative decoding, which does not change the output. "lookup" takes draft tokens from the
            prompt and output; otherwise a draft model with the same tokenizer, named like `model`.
        allow_nonfinite: accept weights that contain NaN or infinity, with a warning; their output is meaningless.
        max_rows: maximum number of requests decoded together; None: 64, or 16 on a CPU.
        max_kv_bytes: maximum size of the keys and values per device; None: a share of its memory.
        fixed_table: keep the table of requests at its maximum size, so that no bit of a completion depends on others.
        adapters: adapters to merge into the weights: PEFT folders, hub ids or runs that trained one, each as FOLDER or
            FOLDER=WEIGHT.

    Returns:
        A `Generator`, with the methods `generate`, `complete`, `run`, `complete_turn`, `stream`, `score`, and
        `complete_async`, `run_async` and `stream_async` for asyncio.

    Raises:
        UserError: if the model is not found, its files are damaged, its weights contain NaN or infinity, or an argument
            has the wrong type.
    """
    from codegen_jax.inference.generator import Generator  # imports jax, which takes a second; tokenizing needs no jax

    return Generator.load(
        model, dtype, quantize, mesh, draft, allow_nonfinite, max_rows, max_kv_bytes, fixed_table, adapters
    )


def __getattr__(name: str) -> Any:
    if name in ("Options", "Request", "SamplingParams"):  # imported on first use, as in `load`
        from codegen_jax.inference import request

        return getattr(request, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
