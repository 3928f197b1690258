"""CodeGen in JAX: pretrain, fine-tune, convert and run the models of arXiv 2203.13474."""

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
        dtype: dtype of activations and matrix products. None: the run's, otherwise float32 for float32 weights and
            bfloat16 for 16-bit weights.
        quantize: int8: store matrices as int8 with one scale per output channel; activations stay in dtype.
        mesh: devices along data (shard the rows) and tensor (shard the heads); None: the first device.
        draft: source of draft tokens for speculative decoding: "lookup" (repeats of prompt and output), or another
            model with the same tokenizer, named like `model`. It does not change the tokens generated.
        allow_nonfinite: accept weights that contain NaN or infinity, with a warning; their completions are meaningless.

    Returns:
        A generator; `load("runs/tiny_cpu").generate("def add(a, b):", max_new_tokens=64)` returns the completion.

    Raises:
        UserError: if the model does not exist, its files are damaged, its weights contain NaN or infinity, or an
            argument has the wrong type.
    """
    from codegen_jax.inference.generate import Generator  # importing jax takes a second, which tokenizing workers avoid

    return Generator.load(model, dtype, quantize, mesh, draft, allow_nonfinite)


def __getattr__(name: str) -> Any:
    if name == "Options":  # imported on demand, like the generator
        from codegen_jax.inference.options import Options

        return Options
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
