"""CodeGen in JAX: pretrain, fine-tune, convert and run the models of arXiv 2203.13474."""

import os
from glob import glob
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

from codegen_jax.config import CodeGenConfig, MeshConfig
from codegen_jax.errors import UserError

if TYPE_CHECKING:
    from codegen_jax.inference.generate import Generator

# libtpu without a TPU (it is here for `codegen-jax plan`) would make the start of JAX slow and print errors
if find_spec("libtpu") and not glob("/dev/accel*") + glob("/dev/vfio/*"):
    gpu = find_spec("jax_cuda13_plugin") and glob("/dev/nvidia[0-9]*")
    os.environ.setdefault("JAX_PLATFORMS", "cuda,cpu" if gpu else "cpu")

__version__ = "0.1.0"
__all__ = ["CodeGenConfig", "MeshConfig", "UserError", "load"]


def load(
    model: str,
    dtype: Literal["bfloat16", "float32"] | None = None,
    quantize: Literal["int8"] | None = None,
    mesh: MeshConfig | None = None,
) -> "Generator":
    """Load a model for generation.

    Args:
        model: a hub id ("Salesforce/codegen-350M-mono"), a Hugging Face folder, a run's output folder (its latest
            checkpoint) or one checkpoint's folder.
        dtype: of activations and matrix products; None takes the run's, or float32 for float32 weights and bfloat16
            for 16-bit ones.
        quantize: int8: matrices as int8 with a scale for each output; activations stay in dtype.
        mesh: devices to spread rows (data) and heads (tensor) over; None: the first device.

    Returns:
        A generator: `load("runs/tiny_cpu").generate("def add(a, b):", max_new_tokens=64)` is the completion as text.

    Raises:
        UserError: if there is no such model, or its files are damaged.
    """
    from codegen_jax.inference.generate import Generator  # importing jax takes a second; the tokenizing workers skip it

    return Generator.load(model, dtype, quantize, mesh)
