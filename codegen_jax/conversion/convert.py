"""convert(): read a model in any format, write it in another, chunk by chunk, and verify it before it appears."""

import logging
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

import ml_dtypes
import numpy as np

from codegen_jax.conversion.verify import Agreement, Proof, check_proof, verify
from codegen_jax.data.tokenizer import Tokenizer
from codegen_jax.errors import require
from codegen_jax.progress import Progress
from codegen_jax.storage import require_local
from codegen_jax.weights.base import Index, Weights, fold_embedding_bias, shapes
from codegen_jax.weights.checkpoint_format import CheckpointWeights
from codegen_jax.weights.checkpoint_writer import write_checkpoint
from codegen_jax.weights.finite import cast
from codegen_jax.weights.generation_config import fit_to_tokenizer
from codegen_jax.weights.huggingface import write_huggingface
from codegen_jax.weights.huggingface_layout import MP_NUM
from codegen_jax.weights.open import open_model

log = logging.getLogger(__name__)

Format = Literal["jax", "hf", "gptj"]


@dataclass(frozen=True)
class Summary:
    """Summary of a conversion.

    Attributes:
        parameters: number of parameters.
        nbytes: bytes of weights written.
        dtypes: names of the dtypes written.
        seconds: time for reading and writing.
        peak_bytes: peak memory of the process.
        agreement: the result of the verification, if one was requested.
    """

    parameters: int
    nbytes: int
    dtypes: list[str]
    seconds: float
    peak_bytes: int
    agreement: Agreement | None


class CastWeights(Weights):
    """Weights cast to another dtype; a value that would overflow to infinity is an error."""

    def __init__(self, weights: Weights, dtype: np.dtype):
        super().__init__(weights.source, weights.config, weights.tokenizer)
        self.weights, self.target, self.generation_config = weights, dtype, weights.generation_config

    def dtype(self, name: str) -> np.dtype:
        return self.target

    def read(self, name: str, index: Index) -> np.ndarray:
        layer = f" of layer {index[0].start}" if name.startswith("blocks.") else ""
        wider = "bfloat16" if self.target == np.float16 else "float32"
        described = f"dtype: {self.target.name}: {name}{layer} in {self.source}"
        return cast(self.weights.read(name, index), self.target, described, f"use {wider}")


def convert(
    source: str,
    destination: str,
    *,
    to: Format = "jax",
    dtype: Literal["float16", "bfloat16", "float32"] | None = None,
    mp_num: int | None = None,
    tokenizer: Tokenizer | None = None,
    proof: Proof | None = None,
    allow_nonfinite: bool = False,
) -> Summary:
    """Convert a model. The destination appears only after everything has been written and verified.

    Args:
        source: see `open_model`.
        destination: a new or empty folder.
        to: "jax" for our checkpoint, "hf" for transformers' CodeGen, "gptj" for the same network as a GPT-J.
        dtype: dtype of the weights; None keeps the source's. An embedding bias is folded in before the cast.
        mp_num: groups in qkv_proj of the source, or, if the source is our own checkpoint, of the destination.
        tokenizer: replaces the source's tokenizer.
        proof: verify against an independent implementation in NumPy ("numpy") or against transformers ("torch").
        allow_nonfinite: convert NaN and infinities as they are with a warning, instead of refusing them.

    Raises:
        UserError: if the model or destination cannot be used, weights are not finite, a value exceeds the dtype's
            range, or the verification fails.
    """
    require(mp_num is None or mp_num > 0, f"mp_num: must be positive, got {mp_num}")
    require(
        proof is None or not allow_nonfinite,
        "allow_nonfinite: non-finite logits cannot be verified; leave out allow_nonfinite or the verification",
    )
    require_local("destination", destination)
    target = Path(destination).absolute()
    require(
        not target.exists() or (target.is_dir() and not any(target.iterdir())),
        f"{destination}: already exists and is not an empty folder; choose another destination",
    )
    opened = open_model(source, mp_num, allow_nonfinite=allow_nonfinite)
    if proof is not None:
        check_proof(proof, opened, to)
    weights = fold_embedding_bias(opened)
    if dtype is not None:
        weights = CastWeights(weights, np.dtype(getattr(ml_dtypes, dtype, dtype)))
    if tokenizer is not None:
        if weights.tokenizer is not None and not tokenizer.extends(weights.tokenizer):
            log.warning(
                f"tokenizer: the ids of {tokenizer.fingerprint} stand for different text than those of {source}'s "
                f"tokenizer ({weights.tokenizer.fingerprint})"
            )
            weights.generation_config = {}
        weights.tokenizer = tokenizer
        weights.generation_config = fit_to_tokenizer(weights.generation_config, tokenizer, source)
    if weights.tokenizer is None:
        log.warning(
            f"{source}: no tokenizer found; {destination} cannot generate from text unless a tokenizer is given"
        )
    elif weights.tokenizer.vocab_size > weights.config.vocab_size:
        log.warning(
            f"{source}: the tokenizer has {weights.tokenizer.vocab_size} ids, but the model only "
            f"{weights.config.vocab_size}; texts that contain the extra tokens will fail"
        )

    sizes = {name: prod(shape) * weights.dtype(name).itemsize for name, shape in shapes(weights.config).items()}
    _check_space(target, sum(sizes.values()))
    began = time.perf_counter()
    with _appears_when_done(target) as folder:
        with Progress("converting", sum(sizes.values()), "B") as progress:
            if to == "jax":
                write_checkpoint(weights, folder, progress.update)
            else:
                groups = mp_num if mp_num is not None and isinstance(opened, CheckpointWeights) else MP_NUM
                write_huggingface(weights, folder, progress.update, gptj=to == "gptj", mp_num=groups)
        seconds = time.perf_counter() - began
        if proof:
            log.info(f"verifying against {'NumPy' if proof == 'numpy' else 'transformers'}")
        agreement = verify(proof, opened, folder, to) if proof else None
    unit = 1 if sys.platform == "darwin" else 1024
    return Summary(
        parameters=weights.config.n_params,
        nbytes=sum(sizes.values()),
        dtypes=sorted({weights.dtype(name).name for name in sizes}),
        seconds=seconds,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        agreement=agreement,
    )


def _check_space(target: Path, needed: int) -> None:
    parent = next(folder for folder in target.parents if folder.exists())
    free = shutil.disk_usage(parent).free
    require(
        free > needed,
        f"{target}: needs {needed / 1e9:.1f} GB, but {parent} has only {free / 1e9:.1f} GB free; free some space or "
        "choose another destination",
    )


@contextmanager
def _appears_when_done(target: Path) -> Iterator[Path]:
    """Yield a temporary path next to the target; it is renamed to the target on success and removed on failure.

    A killed conversion leaves only a hidden folder, which the next conversion to the same target removes.
    """
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial / "model"
        (partial / "model").rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
