"""A second implementation of the forward pass, in NumPy on a format's own tensors, used to verify conversions.

It shares no code with model/ or weights/ and keeps the original layout: q, v, k in mp_num groups of channels, rotary
pairs interleaved. It was written from the authors' modules.py and modeling_codegen.py. It computes in float32, with one
layer in memory at a time. It also reads the model's sizes independently, since comparing logits does not reveal
every wrong size (n_positions never affects them).

Axes: B batch, T time, D width, V vocabulary.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Architecture:
    """The sizes of a model under our config's names, taken from tensor shapes if possible, else from config.json."""

    n_layer: int
    n_embd: int
    n_head: int
    head_dim: int
    n_inner: int
    rotary_dim: int
    n_positions: int
    layer_norm_epsilon: float
    vocab_size: int


def transformers_architecture(folder: Path, tensors: Mapping[str, Any]) -> Architecture:
    """The sizes of a CodeGenForCausalLM or GPTJForCausalLM folder; both configs have the same names and defaults."""
    written = json.loads((folder / "config.json").read_text(encoding="utf-8-sig"))

    def field(default: Any, *names: str) -> Any:
        return next((written[name] for name in names if name in written), default)

    n_head = field(16, "n_head", "num_attention_heads")
    vocab_size, n_embd = tensors["transformer.wte.weight"].shape
    return Architecture(
        n_layer=len({name.split(".")[2] for name in tensors if name.startswith("transformer.h.")}),
        n_embd=n_embd,
        n_head=n_head,
        head_dim=tensors["transformer.h.0.attn.out_proj.weight"].shape[1] // n_head,
        n_inner=tensors["transformer.h.0.mlp.fc_in.weight"].shape[0],
        rotary_dim=field(64, "rotary_dim"),
        n_positions=field(2048, "n_positions", "max_position_embeddings"),
        layer_norm_epsilon=field(1e-5, "layer_norm_epsilon"),
        vocab_size=vocab_size,
    )


def jaxformer_architecture(folder: Path, arrays: Sequence[Any]) -> Architecture:
    """The sizes of a jaxformer checkpoint. The number of heads comes from config.json in `folder` or its parent, else
    from the published model of this width."""
    files = [path for path in (folder / "config.json", folder.parent / "config.json") if path.exists()]
    vocab_size, n_embd = arrays[1].shape
    n_layer, attended, _ = arrays[6].shape
    if files:
        written = json.loads(files[0].read_text(encoding="utf-8-sig"))
        n_head, rotary_dim = written["model_heads"], written["model_pe_rotary_dims"]
    else:  # 350M has 64 channels per head and rotates half of them; 2B has 80; 6B and 16B have 256
        n_head = attended // {1024: 64, 2048: 128, 2560: 80, 4096: 256, 6144: 256}[n_embd]
        rotary_dim = 32 if n_embd == 1024 else 64
    return Architecture(
        n_layer=n_layer,
        n_embd=n_embd,
        n_head=n_head,
        head_dim=attended // n_head,
        n_inner=arrays[9].shape[2],
        rotary_dim=rotary_dim,
        n_positions=2048,  # for every model that the authors trained; their configs set no maximum
        layer_norm_epsilon=1e-5,  # Haiku's default
        vocab_size=vocab_size,
    )


class Original(Protocol):
    """A model in its original layout; kernels are returned as [in, out] in float32."""

    config: Architecture
    mp_num: int

    @property
    def dtype(self) -> np.dtype:
        """The stored dtype of the embedding."""
        ...

    def embed(self, ids: np.ndarray) -> np.ndarray: ...
    def layer(self, number: int) -> Arrays: ...
    def final(self) -> Arrays: ...
    def head(self, rows: slice) -> np.ndarray: ...


def logits(model: Original, tokens_BT: np.ndarray) -> np.ndarray:
    """Next-token logits, float32 [B, T, V]."""
    config = model.config
    ids, positions = np.unique(tokens_BT, return_inverse=True)
    x = model.embed(ids)[positions.reshape(tokens_BT.shape)]
    for number in range(config.n_layer):
        x = block(x, model.layer(number), config, model.mp_num)
    w = model.final()
    h = layer_norm(x, w["scale"], w["bias"], config.layer_norm_epsilon)
    V = config.vocab_size
    blocks = [h @ model.head(slice(start, min(start + 8192, V))) for start in range(0, V, 8192)]
    return np.concatenate(blocks, axis=-1) + w["head_bias"]


def block(x: np.ndarray, w: Arrays, config: Architecture, mp_num: int) -> np.ndarray:
    h = layer_norm(x, w["ln_scale"], w["ln_bias"], config.layer_norm_epsilon)
    x = x + attention(h, w["qkv"], config, mp_num) @ w["out"]
    return x + gelu_new(h @ w["fc_in"] + w["fc_in_bias"]) @ w["fc_out"] + w["fc_out_bias"]


def layer_norm(x: np.ndarray, scale: np.ndarray, bias: np.ndarray, epsilon: float) -> np.ndarray:
    centered = x - x.mean(axis=-1, keepdims=True)
    variance = (centered**2).mean(axis=-1, keepdims=True)
    return centered / np.sqrt(variance + epsilon) * scale + bias


def gelu_new(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def attention(h: np.ndarray, qkv: np.ndarray, config: Architecture, mp_num: int) -> np.ndarray:
    """The outputs of all heads, [B, T, heads * head_dim], before the output projection."""
    B, T, _ = h.shape
    channels = config.n_head // mp_num * config.head_dim
    groups = np.split(h @ qkv, mp_num, axis=-1)  # one group per TPU core of the authors' setup
    q, v, k = (
        np.concatenate([group[..., i * channels : (i + 1) * channels] for group in groups], axis=-1)
        .reshape(B, T, config.n_head, config.head_dim)
        .transpose(0, 2, 1, 3)
        for i in range(3)
    )
    q, k = rotate_every_two(q, config.rotary_dim), rotate_every_two(k, config.rotary_dim)
    scores = q @ k.transpose(0, 1, 3, 2) / np.sqrt(np.float32(config.head_dim))
    scores = np.where(np.tril(np.ones((T, T), bool)), scores, np.float32(-1e9))
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return (weights @ v).transpose(0, 2, 1, 3).reshape(B, T, -1)


def rotate_every_two(x: np.ndarray, rotary_dim: int) -> np.ndarray:
    """Rotate channel pairs (2i, 2i+1) of the first rotary_dim channels of x [B, heads, T, head_dim] by their angles."""
    T = x.shape[2]
    angles = np.outer(np.arange(T), 10000.0 ** (-np.arange(0, rotary_dim, 2) / rotary_dim))
    sin, cos = np.sin(angles).astype(np.float32), np.cos(angles).astype(np.float32)
    even, odd = x[..., 0:rotary_dim:2], x[..., 1:rotary_dim:2]
    rotated = x.copy()
    rotated[..., 0:rotary_dim:2] = even * cos - odd * sin
    rotated[..., 1:rotary_dim:2] = odd * cos + even * sin
    return rotated


@dataclass
class TransformersOriginal:
    """A model given as the tensors of CodeGenForCausalLM or GPTJForCausalLM."""

    tensors: Mapping[str, Any]
    config: Architecture
    mp_num: int

    @property
    def dtype(self) -> np.dtype:
        return self.tensors["transformer.wte.weight"].dtype

    def _get(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        return np.asarray(self.tensors[name][rows], np.float32)

    def embed(self, ids: np.ndarray) -> np.ndarray:
        return np.concatenate([self._get("transformer.wte.weight", slice(id, id + 1)) for id in ids.tolist()])

    def layer(self, number: int) -> Arrays:
        block = f"transformer.h.{number}."
        if block + "attn.qkv_proj.weight" in self.tensors:
            qkv = self._get(block + "attn.qkv_proj.weight").T
        else:  # GPT-J: one group
            qkv = np.concatenate([self._get(f"{block}attn.{x}_proj.weight").T for x in "qvk"], axis=1)
        return {
            "ln_scale": self._get(block + "ln_1.weight"),
            "ln_bias": self._get(block + "ln_1.bias"),
            "qkv": qkv,
            "out": self._get(block + "attn.out_proj.weight").T,
            "fc_in": self._get(block + "mlp.fc_in.weight").T,
            "fc_in_bias": self._get(block + "mlp.fc_in.bias"),
            "fc_out": self._get(block + "mlp.fc_out.weight").T,
            "fc_out_bias": self._get(block + "mlp.fc_out.bias"),
        }

    def final(self) -> Arrays:
        names = {"scale": "transformer.ln_f.weight", "bias": "transformer.ln_f.bias", "head_bias": "lm_head.bias"}
        return {name: self._get(theirs) for name, theirs in names.items()}

    def head(self, rows: slice) -> np.ndarray:
        return self._get("lm_head.weight", rows).T


@dataclass
class JaxformerOriginal:
    """A model given as the 14 arrays of a jaxformer checkpoint, in file order."""

    arrays: list[Any]
    config: Architecture
    mp_num: int

    @property
    def dtype(self) -> np.dtype:
        return self.arrays[1].dtype

    def embed(self, ids: np.ndarray) -> np.ndarray:
        return np.asarray(self.arrays[1][ids], np.float32) + np.asarray(self.arrays[0][:], np.float32)

    def layer(self, number: int) -> Arrays:
        numbers = {"out": 6, "qkv": 7, "fc_in_bias": 8, "fc_in": 9, "fc_out_bias": 10, "fc_out": 11}
        numbers |= {"ln_bias": 12, "ln_scale": 13}
        return {name: np.asarray(self.arrays[i][number], np.float32) for name, i in numbers.items()}

    def final(self) -> Arrays:
        numbers = {"bias": 2, "scale": 3, "head_bias": 4}
        return {name: np.asarray(self.arrays[i][:], np.float32) for name, i in numbers.items()}

    def head(self, rows: slice) -> np.ndarray:
        return np.asarray(self.arrays[5][:, rows], np.float32)
