"""Verify a conversion: run our model on one side's weights and another implementation on the other side's weights.

The other implementation is reference.py or transformers. Our model and reference.py need memory for one layer at a
time, transformers for the whole model.

Axes: B batch, T time, D width, V vocabulary.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from scipy.special import log_softmax

from codegen_jax.config import CodeGenConfig
from codegen_jax.conversion import reference
from codegen_jax.data.tokenizer import Tokenizer
from codegen_jax.errors import UserError, listed, require
from codegen_jax.model.codegen import CodeGen, Params, abstract_params, module
from codegen_jax.weights.adapter import AdaptedWeights
from codegen_jax.weights.base import Index, Weights, load_params, shapes
from codegen_jax.weights.checkpoint_format import CheckpointWeights
from codegen_jax.weights.huggingface_layout import HuggingFaceWeights
from codegen_jax.weights.jaxformer import JaxformerWeights
from codegen_jax.weights.open import open_model
from codegen_jax.weights.tensors import open_tensors

Proof = Literal["numpy", "torch"]

TEXT = '''def fibonacci(n):
    """Return the first n Fibonacci numbers."""
    numbers = [0, 1]
    while len(numbers) < n:
        numbers.append(numbers[-1] + numbers[-2])
    return numbers[:n]
'''


# tolerances: for the difference without and with rounded weights, and for the KL divergence
EXACT, ROUNDED, KL = 1e-3, 5e-2, 0.015


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How closely the next-token logits of two implementations agree on a few sequences.

    Attributes:
        difference: largest absolute difference between logits, relative to the largest absolute logit.
        kl: mean Kullback-Leibler divergence in nats per token.
        top_10: overlap of the ten most likely tokens.
        greedy: share of positions at which the most likely token is the same.
        loss: mean cross-entropy of our model on a snippet of Python, in nats per token; None without a tokenizer. Both
            sides read qkv_proj with the same mp_num, so a wrong value shows only here: a loss of about 8 instead of 2.
    """

    difference: float
    kl: float
    top_10: float
    greedy: float
    loss: float | None

    def __str__(self) -> str:
        loss = "" if self.loss is None else f", loss on a Python snippet {self.loss:.2f} nats per token"
        return (
            f"largest difference {self.difference:.1e} relative to the largest logit, KL divergence {self.kl:.1e} nats "
            f"per token, top-10 overlap {self.top_10:.1%}, greedy agreement {self.greedy:.1%}{loss}"
        )


def check_proof(proof: Proof, opened: Weights, to: str) -> None:
    """Raise `UserError` if a conversion cannot be verified this way."""
    require(
        not (isinstance(opened, CheckpointWeights) and to == "jax"),
        "proof: source and destination are both in our format, so there is nothing to compare; leave it out",
    )
    require(
        not (isinstance(opened, AdaptedWeights) and to == "jax"),
        "proof: no other implementation has a merged model in our format; convert it to hf, or leave it out",
    )
    if proof == "torch":
        require(
            not isinstance(opened, JaxformerWeights) or to == "gptj",
            "proof: torch: transformers does not read jaxformer's format; use numpy",
        )
        try:
            import transformers  # noqa: F401
        except ImportError as error:
            raise UserError("proof: torch: requires transformers and PyTorch; install them or use numpy") from error


def is_only_ours(opened: Weights) -> bool:
    """Whether only our code reads the source of a conversion: our checkpoint, or a model with adapters merged in."""
    return isinstance(opened, CheckpointWeights | AdaptedWeights)


def verify(proof: Proof, opened: Weights, written: Path, to: str) -> Agreement:
    """Compare the source and the destination of a conversion.

    The other implementation runs on the source, unless only our code reads it or the destination is a GPT-J, which our
    code does not read; then it runs on the destination. Our model runs on the remaining side.

    Raises:
        UserError: if the difference exceeds the tolerance, or an independent reading of the sizes gives other values.
    """
    if to == "gptj":
        ours, folder = opened, str(written)
        tensors = open_tensors(written)
        original = reference.TransformersOriginal(
            tensors, reference.transformers_architecture(written, tensors), mp_num=1
        )
    elif is_only_ours(opened):
        ours, folder = opened, str(written)
        original = original_of(open_model(folder))
    else:
        ours, folder = open_model(str(written)), opened.source
        original = original_of(opened)
    if not is_only_ours(opened):
        check_sizes(opened.source, opened.config, original_of(opened).config)
    check_sizes(folder, ours.config, original.config)
    tokens_BT, n_text = sequences(ours.config, ours.tokenizer)
    if proof == "torch":
        model = load_transformers(folder)
        check_sizes(folder, ours.config, architecture_of(model.config))
        theirs_BTV = transformers_logits(model, tokens_BT)
    else:
        theirs_BTV = reference.logits(original, tokens_BT)
    agreement = compare(our_logits(ours, tokens_BT), theirs_BTV, tokens_BT[0, :n_text])
    is_folded = opened.config.embedding_bias and original.dtype != np.float32
    is_rounded = is_folded or any(ours.dtype(name) != original.dtype for name in shapes(ours.config))
    tolerance = ROUNDED if is_rounded else EXACT
    require(
        agreement.difference <= tolerance and agreement.kl <= KL,  # also false for NaN
        f"proof: the conversion of {opened.source} gives different results: {agreement}; the tolerances are a "
        f"difference of {tolerance} and a KL divergence of {KL}",
    )
    return agreement


def original_of(weights: Weights) -> reference.Original:
    """The second implementation on the tensors behind these weights, with sizes that it reads independently."""
    folder = Path(weights.source)
    if isinstance(weights, JaxformerWeights):
        arrays = list(weights.leaves.values())
        return reference.JaxformerOriginal(arrays, reference.jaxformer_architecture(folder, arrays), weights.mp_num)
    assert isinstance(weights, HuggingFaceWeights)
    architecture = reference.transformers_architecture(folder, weights.tensors)
    return reference.TransformersOriginal(weights.tensors, architecture, weights.mp_num)


def check_sizes(folder: str, config: CodeGenConfig, independent: reference.Architecture) -> None:
    """Raise `UserError` if an independent reading of a folder's sizes differs from our config."""
    for name, theirs in vars(independent).items():
        ours = getattr(config, name)
        require(
            ours == theirs,
            f"proof: {name} is {ours} in our config, but {theirs} according to an independent reading of {folder}",
        )


def sequences(config: CodeGenConfig, tokenizer: Tokenizer | None) -> tuple[np.ndarray, int]:
    """Two rows of ids, and the number of ids of TEXT at the start of the first row; all other ids are random."""
    length = min(64, config.n_positions)
    tokens_BT = np.random.default_rng(0).integers(0, config.vocab_size, (2, length))
    text = [] if tokenizer is None else [id for id in tokenizer.encode(TEXT) if id < config.vocab_size][:length]
    tokens_BT[0, : len(text)] = text
    return tokens_BT, len(text)


class OneLayer(Weights):
    """A model with a single layer of another model and the same embedding and head; it computes in float32."""

    def __init__(self, weights: Weights, number: int):
        config = dataclasses.replace(weights.config, n_layer=1, dtype="float32")
        super().__init__(weights.source, config, weights.tokenizer)
        self.weights, self.number = weights, number

    def dtype(self, name: str) -> np.dtype:
        return self.weights.dtype(name)

    def read(self, name: str, index: Index) -> np.ndarray:
        if name.startswith("blocks."):
            index = (slice(self.number, self.number + 1), *index[1:])
        return self.weights.read(name, index)


def our_logits(weights: Weights, tokens_BT: np.ndarray) -> np.ndarray:
    """Logits of our model, float32 [B, T, V], with only the embedding, one layer or the head in memory at a time."""
    config = OneLayer(weights, 0).config
    absent = abstract_params(config)

    def run(part: Callable[[CodeGen, jax.Array], jax.Array], names: set[str], x: Any, layer: int = 0) -> jax.Array:
        params = load_params(OneLayer(weights, layer), {name: absent[name] for name in names & absent.keys()})
        # wait: these parameters must be freed before the next ones are read
        return jax.block_until_ready(run_part(part, params, x))

    @partial(jax.jit, static_argnums=0)
    def run_part(part: Callable[[CodeGen, jax.Array], jax.Array], params: Params, x: jax.Array) -> jax.Array:
        return part(module(config, absent | params), x)

    x_BTD = run(CodeGen.embed, {"embedding", "embedding_bias"}, tokens_BT)
    for number in range(weights.config.n_layer):
        x_BTD = run(CodeGen.run_blocks, {"blocks"}, x_BTD, number)
    scores = lambda model, x_BTD: model.logits(model.ln_f(x_BTD))
    return np.asarray(run(scores, {"ln_f", "head", "head_bias"}, x_BTD))


def load_transformers(folder: str) -> Any:
    """Load a folder with transformers, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    except Exception as error:  # from config validation, PyTorch or safetensors
        text = " ".join(str(error).split())[:300]
        raise UserError(f"proof: torch: transformers cannot load {folder} ({text}); use numpy") from error
    model, information = loaded
    missing = sorted(information["missing_keys"])
    require(not missing, f"proof: torch: transformers does not find {listed(missing)} in {folder}; use numpy")
    return model.eval()


def architecture_of(config: Any) -> reference.Architecture:
    """The sizes in transformers' own config object of a CodeGen or GPT-J."""
    derived = {
        "head_dim": config.n_embd // config.n_head,
        "n_inner": 4 * config.n_embd if config.n_inner is None else config.n_inner,
    }
    names = [field.name for field in dataclasses.fields(reference.Architecture) if field.name not in derived]
    return reference.Architecture(**{name: getattr(config, name) for name in names}, **derived)


def transformers_logits(model: Any, tokens_BT: np.ndarray) -> np.ndarray:
    """Logits of a transformers model, float32 [B, T, V]."""
    import torch

    with torch.no_grad():
        return model(torch.tensor(tokens_BT)).logits.numpy()


def compare(ours_BTV: np.ndarray, theirs_BTV: np.ndarray, text: np.ndarray) -> Agreement:
    """The agreement of two implementations' logits; the loss is over `text`, the ids at the start of the first row."""
    ours, theirs = (log_softmax(scores.astype(np.float64), axis=-1) for scores in (ours_BTV, theirs_BTV))
    top = min(10, ours.shape[-1])
    sets = [np.sort(np.argpartition(-scores, top - 1, axis=-1)[..., :top]) for scores in (ours, theirs)]
    common = [len(np.intersect1d(a, b)) for a, b in zip(*(s.reshape(-1, top) for s in sets), strict=True)]
    loss = None
    if len(text) > 1:
        loss = float(-ours[0, np.arange(len(text) - 1), text[1:]].mean())
    return Agreement(
        difference=float(np.abs(ours_BTV - theirs_BTV).max() / np.abs(theirs_BTV).max()),
        kl=float((np.exp(theirs) * (theirs - ours)).sum(-1).mean()),
        top_10=float(np.mean(common)) / top,
        greedy=float((ours.argmax(-1) == theirs.argmax(-1)).mean()),
        loss=loss,
    )
