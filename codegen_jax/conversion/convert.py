"""convert(): read a model in any format, write it in another, chunk by chunk, and verify it before it appears."""

import logging
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

import ml_dtypes
import numpy as np

from codegen_jax.conversion.verify import Agreement, Proof, check_proof, verify
from codegen_jax.data.tokenizer import Tokenizer
from codegen_jax.errors import UserError, require
from codegen_jax.progress import Progress
from codegen_jax.storage import require_local
from codegen_jax.weights.adapter import AdaptedWeights, source_of
from codegen_jax.weights.adapter_layout import read_adapter_checkpoint
from codegen_jax.weights.base import Index, Weights, fold_embedding_bias, shapes
from codegen_jax.weights.checkpoint_format import load_run
from codegen_jax.weights.checkpoint_writer import write_checkpoint
from codegen_jax.weights.finite import cast
from codegen_jax.weights.generation_config import fit_to_tokenizer
from codegen_jax.weights.huggingface import write_huggingface
from codegen_jax.weights.huggingface_layout import MP_NUM
from codegen_jax.weights.open import open_model
from codegen_jax.weights.peft import write_peft
from codegen_jax.weights.run_folder import find_checkpoint

log = logging.getLogger(__name__)

Format = Literal["jax", "hf", "gptj", "peft"]


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
    """Weights cast to other dtypes, by parameter; a value that would overflow to infinity is an error."""

    def __init__(self, weights: Weights, dtype: Callable[[str], np.dtype]):
        super().__init__(weights.source, weights.config, weights.tokenizer)
        self.weights, self.target, self.generation_config = weights, dtype, weights.generation_config

    def dtype(self, name: str) -> np.dtype:
        return self.target(name)

    def read(self, name: str, index: Index) -> np.ndarray:
        layer = f" of layer {index[0].start}" if name.startswith("blocks.") else ""
        target = self.target(name)
        wider = "bfloat16" if target == np.float16 else "float32"
        described = f"dtype: {target.name}: {name}{layer} in {self.source}"
        return cast(self.weights.read(name, index), target, described, f"use {wider}")


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
    adapters: Sequence[str] = (),
) -> Summary:
    """Convert a model. The destination appears only after everything has been written and verified.

    Args:
        source: see `open_model`.
        destination: a new or empty folder.
        to: "jax" for our checkpoint, "hf" for transformers' CodeGen, "gptj" for the same network as a GPT-J,
            "peft" for the adapter of a run, without its model.
        dtype: dtype of the weights; None keeps the source's. An embedding bias is folded in before the cast.
        mp_num: groups in qkv_proj of the source, or, if the source is our own checkpoint, of the destination.
        tokenizer: replaces the source's tokenizer.
        proof: verify against an independent implementation in NumPy ("numpy") or against transformers ("torch").
        allow_nonfinite: convert NaN and infinities as they are with a warning, instead of refusing them.
        adapters: adapters to merge into the weights, as FOLDER or FOLDER=WEIGHT.

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
    if to == "peft":
        is_alone = proof is None and tokenizer is None and not adapters
        require(is_alone, "to: peft: takes neither a tokenizer, nor adapters, nor a verification; leave them out")
        return _convert_adapter(source, target, dtype, mp_num)
    opened = open_model(source, mp_num, allow_nonfinite=allow_nonfinite, adapters=adapters)
    if proof is not None:
        check_proof(proof, opened, to)
    weights = fold_embedding_bias(opened)
    if dtype is not None:
        target_dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
        weights = CastWeights(weights, lambda name: target_dtype)
    elif isinstance(opened, AdaptedWeights):
        weights = CastWeights(weights, source_of(opened).dtype)  # the merge is float32
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
                is_checkpoint = find_checkpoint(source) is not None
                groups = mp_num if mp_num is not None and is_checkpoint else MP_NUM
                write_huggingface(weights, folder, progress.update, gptj=to == "gptj", mp_num=groups)
        seconds = time.perf_counter() - began
        if proof:
            log.info(f"verifying against {'NumPy' if proof == 'numpy' else 'transformers'}")
        agreement = verify(proof, opened, folder, to) if proof else None
    return Summary(
        parameters=weights.config.n_params,
        nbytes=sum(sizes.values()),
        dtypes=sorted({weights.dtype(name).name for name in sizes}),
        seconds=seconds,
        peak_bytes=peak_memory(),
        agreement=agreement,
    )


def _convert_adapter(source: str, target: Path, dtype: str | None, mp_num: int | None) -> Summary:
    """Write the adapter of a run as a PEFT folder."""
    checkpoint = find_checkpoint(source)
    if checkpoint is None:
        raise UserError(f"{source}: not a run or checkpoint; to: peft needs one that trained an adapter")
    began, run = time.perf_counter(), load_run(checkpoint)
    groups = mp_num or (run.adapter or {}).get("mp_num", MP_NUM)
    adapter = read_adapter_checkpoint(checkpoint, run, run.model, groups)
    require(
        not (run.adapter or {}).get("on_adapters"),
        f"{source}: was trained on top of other adapters, which PEFT would not load; convert {source} --to hf, or "
        "convert what is below it first and train on that",
    )
    name = dtype or "float32"
    with _appears_when_done(target) as folder:
        nbytes = write_peft(adapter.astype(np.dtype(getattr(ml_dtypes, name, name))), folder, run.model.n_positions)
    return Summary(
        parameters=sum(array.size for array in adapter.arrays.values()),
        nbytes=nbytes,
        dtypes=[name],
        seconds=time.perf_counter() - began,
        peak_bytes=peak_memory(),
        agreement=None,
    )


def peak_memory() -> int:
    """Peak memory of this process in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


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
