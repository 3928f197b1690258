"""Compile decoding for a slice that is not there: whether a model fits, and how long a token should take."""

from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from codegen_jax.chips import GIB
from codegen_jax.config import CodeGenConfig, MeshConfig
from codegen_jax.errors import UserError, require
from codegen_jax.inference.decode import Program, Rows, decode_round, prefill, recent_slots, slots_for
from codegen_jax.inference.decode_weights import abstract_weights
from codegen_jax.inference.matrix import Quantize
from codegen_jax.inference.network import Past, empty_cache
from codegen_jax.inference.options import Options
from codegen_jax.planning.hlo import Module
from codegen_jax.planning.plan import links_of, memory_of_error, shard_bytes, text_of
from codegen_jax.planning.schedule import operations
from codegen_jax.planning.slices import Slice, slice_devices
from codegen_jax.sharding import make_mesh, spec


@dataclass(frozen=True)
class DecodePlan:
    """What decoding would be on a slice. Bytes are of one chip; times are estimates in seconds (`schedule.py`).

    Attributes:
        topology: the slice's name.
        tensor: chips that share the heads; `rows` lie on chips / tensor of such groups.
        rows: decoded together.
        slots: of the cache, a row.
        weights_bytes: of the weights, but the embedding, of which a token reads a row.
        cache_bytes: of keys and values of all slots.
        peak_bytes: the larger of prefill's and decoding's.
        available_bytes: to the program, by the compiler.
        prefill_seconds: of the prompts of all rows.
        token_seconds: of one token of each row.
        bound_seconds: what reading weights and cache once takes at the chip's memory bandwidth.
    """

    topology: str
    tensor: int
    rows: int
    slots: int
    weights_bytes: int
    cache_bytes: int
    peak_bytes: int
    available_bytes: int
    prefill_seconds: float
    token_seconds: float
    bound_seconds: float

    @property
    def mbu(self) -> float:
        """Share of the memory bandwidth."""
        return self.bound_seconds / self.token_seconds

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"mbu": self.mbu, "tokens_per_second": self.rows / self.token_seconds}

    def __str__(self) -> str:
        return (
            f"{self.topology}, tensor {self.tensor}, {self.rows} row(s) of {self.slots} slots\n"
            f"HBM of a chip: weights {self.weights_bytes / GIB:.2f} GiB, cache {self.cache_bytes / GIB:.2f} GiB, peak "
            f"{self.peak_bytes / GIB:.2f} GiB of {self.available_bytes / GIB:.2f} GiB\n"
            f"estimates: prefill {self.prefill_seconds * 1e3:.1f} ms; a token {self.token_seconds * 1e3:.2f} ms, "
            f"{self.rows / self.token_seconds:,.0f} tokens/s; reading weights and cache takes "
            f"{self.bound_seconds * 1e3:.2f} ms: MBU {self.mbu:.0%}"
        )


def plan_decode(
    config: CodeGenConfig,
    tpu: Slice,
    *,
    rows: int,
    prompt_tokens: int,
    max_new_tokens: int,
    tensor: int | None = None,
    quantize: Quantize = None,
) -> DecodePlan:
    """Compile prefill and a token of decoding.

    Args:
        config: of the network.
        tpu: the slice.
        rows: prompts decoded together.
        prompt_tokens: of each prompt.
        max_new_tokens: to add to each.
        tensor: chips that share the heads; None: all.
        quantize: as in `codegen_jax.load`.

    Raises:
        UserError: if the mesh does not fit the slice or the model, or the program its memory.
    """
    for name, value in (("rows", rows), ("prompt_tokens", prompt_tokens), ("max_new_tokens", max_new_tokens)):
        require(value > 0, f"{name}: {value} must be positive")
    require(tensor is None or tensor > 0, f"tensor: {tensor} must be positive")
    devices = slice_devices(tpu)
    tensor = len(devices) if tensor is None else tensor
    mesh = make_mesh(MeshConfig(-1, 1, tensor), devices)
    groups = mesh.shape["data"]
    require(rows % groups == 0, f"rows: {rows} do not divide over {groups} groups of {tensor} chip(s)")
    slots = slots_for(prompt_tokens + max_new_tokens, 0)
    options = Options(temperature=0)
    program = Program.of(options, config, vocab_size=config.vocab_size, end_ids=(0,))
    weights = abstract_weights(config, mesh, quantize)
    cache = _abstract_cache(config, mesh, rows, slots)
    recent = _abstract_cache(config, mesh, rows, recent_slots(0))
    integers_B, integers_BS = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((rows,), (rows, slots)))
    values: dict[str, Any] = {name: integers_B for name in Rows._fields} | {
        "tokens_BS": integers_BS,
        "done_B": jax.ShapeDtypeStruct((rows,), bool),
        "cache": (),
        "draft_cache": (),
    }

    def one_token(weights: Any, rows: Rows, cache: Any, recent: Any, length_B: jax.Array) -> Any:
        none_B0 = jnp.zeros((len(rows.length_B), 0), jnp.int32)
        return decode_round(weights, none_B0, rows, Past(cache, recent, length_B), options.scalars(), program)

    tokens_BT = jax.ShapeDtypeStruct((rows, prompt_tokens), jnp.int32)
    with jax.set_mesh(mesh):
        try:
            filled = prefill.lower(weights, tokens_BT, config=config, slots=slots).compile()
            step = jax.jit(one_token, donate_argnums=(1, 3))
            decoded = step.lower(weights, Rows(**values), cache, recent, integers_B).compile()
        except jax.errors.JaxRuntimeError as error:
            needed, available = (size / GIB for size in memory_of_error(error))
            raise UserError(
                f"does not fit: needs {needed:.2f} GiB of a chip's {available:.2f} GiB; take fewer rows or tokens, "
                "int8 weights, or a larger topology"
            ) from error
    seconds = [
        sum(o.count * o.exposed for o in operations(Module(text_of(compiled)), links_of(mesh, tpu)))
        for compiled in (filled, decoded)
    ]
    memories = [compiled.memory_analysis() for compiled in (filled, decoded)]
    read = sum(map(shard_bytes, jax.tree.leaves(weights))) - shard_bytes(weights.others["embedding"])
    cached = sum(map(shard_bytes, jax.tree.leaves(cache)))
    return DecodePlan(
        topology=tpu.name,
        tensor=tensor,
        rows=rows,
        slots=slots,
        weights_bytes=read,
        cache_bytes=cached,
        peak_bytes=max(memory.peak_memory_in_bytes for memory in memories if memory is not None),
        available_bytes=tpu.chip.hbm_bytes,
        prefill_seconds=seconds[0],
        token_seconds=seconds[1],
        bound_seconds=(read + cached) / tpu.chip.hbm_bandwidth,
    )


def _abstract_cache(config: CodeGenConfig, mesh: Mesh, rows: int, slots: int) -> Any:
    sharding = NamedSharding(mesh, spec("batch", "heads", None, None))
    shapes = jax.eval_shape(lambda: empty_cache(config, rows, slots))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)
