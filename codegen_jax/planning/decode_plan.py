"""Compile decoding for an absent TPU slice: does the model fit, and how long should each token take?"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from codegen_jax.chips import GIB
from codegen_jax.config import CodeGenConfig, MeshConfig
from codegen_jax.errors import UserError, require
from codegen_jax.inference.decode_weights import abstract_weights
from codegen_jax.inference.decoder import Past, empty_cache
from codegen_jax.inference.engine import prompts_per_prefill
from codegen_jax.inference.matrix import Quantize
from codegen_jax.inference.programs import (
    CHUNK,
    Program,
    Rows,
    decode_round,
    empty_chunk,
    prefill,
    recent_slots,
    slots_for,
)
from codegen_jax.inference.sampling import Settings
from codegen_jax.planning.hlo import Module
from codegen_jax.planning.kernels import grid_loops
from codegen_jax.planning.plan import links_of, memory_of_error, shard_bytes, text_of
from codegen_jax.planning.schedule import operations
from codegen_jax.planning.slices import Slice, slice_devices
from codegen_jax.sharding import make_mesh, spec


@dataclass(frozen=True)
class DecodePlan:
    """Memory and speed of decoding on a slice. Bytes are per chip; times are estimates in seconds (`schedule.py`).

    Attributes:
        topology: the slice's name.
        tensor: number of chips that share the attention heads; each such group decodes an equal share of `rows`.
        rows: number of sequences decoded together.
        slots: cache slots per row.
        weights_bytes: size of the weights without the embedding, since each token reads only one row of it.
        cache_bytes: size of the keys and values in all slots.
        peak_bytes: peak memory of decoding, or of a prefill besides the cache, whichever is larger.
        available_bytes: memory available to the program, as reported by the compiler.
        prefill_seconds: time to prefill the prompts of all rows.
        token_seconds: time to decode one token for every row.
        bound_seconds: time to read the weights and the cache once at the chip's memory bandwidth.
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
        """Memory bandwidth utilization: the share of the chip's memory bandwidth that decoding reaches."""
        return self.bound_seconds / self.token_seconds

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"mbu": self.mbu, "tokens_per_second": self.rows / self.token_seconds}

    def __str__(self) -> str:
        return (
            f"{self.topology}, tensor {self.tensor}, batch size {self.rows}, {self.slots} cache slots per row\n"
            f"HBM per chip: weights {self.weights_bytes / GIB:.2f} GiB, cache {self.cache_bytes / GIB:.2f} GiB, peak "
            f"{self.peak_bytes / GIB:.2f} GiB of {self.available_bytes / GIB:.2f} GiB\n"
            f"estimates: prefill {self.prefill_seconds * 1e3:.1f} ms; decode {self.token_seconds * 1e3:.2f} ms per "
            f"token, {self.rows / self.token_seconds:,.0f} tokens/s; MBU {self.mbu:.0%} (reading weights and cache "
            f"takes {self.bound_seconds * 1e3:.2f} ms)"
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
    """Compile prefill and a chunk of decoding rounds.

    Args:
        config: the model config.
        tpu: the slice.
        rows: number of prompts decoded together.
        prompt_tokens: length of each prompt.
        max_new_tokens: number of tokens to generate for each prompt.
        tensor: number of chips that share the attention heads; None means all.
        quantize: see `codegen_jax.load`.

    Raises:
        UserError: if the mesh does not fit the slice or the model, or the program does not fit in memory.
    """
    for name, value in (("rows", rows), ("prompt_tokens", prompt_tokens), ("max_new_tokens", max_new_tokens)):
        require(value > 0, f"{name}: must be positive, got {value}")
    require(tensor is None or tensor > 0, f"tensor: must be positive, got {tensor}")
    devices = slice_devices(tpu)
    tensor = len(devices) if tensor is None else tensor
    mesh = make_mesh(MeshConfig(-1, 1, tensor), devices)
    groups = mesh.shape["data"]
    require(
        rows % groups == 0,
        f"rows: must be a multiple of {groups}, the number of groups of {tensor} chip(s), got {rows}",
    )
    slots = slots_for(prompt_tokens + max_new_tokens, 0)
    program = Program(config, vocab_size=config.vocab_size, end_ids=(0,))
    weights = abstract_weights(config, mesh, quantize)
    cache = _abstract_cache(config, mesh, rows, slots)
    recent = _abstract_cache(config, mesh, rows, recent_slots(0))
    integers_B, integers_BS = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((rows,), (rows, slots)))
    booleans_B, floats_B = (jax.ShapeDtypeStruct((rows,), dtype) for dtype in (bool, jnp.float32))
    values: dict[str, Any] = {name: integers_B for name in Rows._fields} | {
        "tokens_BS": integers_BS,
        "done_B": booleans_B,
        "ignore_end_B": booleans_B,
        "settings": Settings(*[floats_B] * len(Settings._fields))._replace(top_k=integers_B),
    }

    def decode(weights: Any, rows: Rows, cache: Any, recent: Any, base_B: jax.Array) -> Any:
        """Like `programs.decode`, with a number of rounds that the plan can count."""

        def one_round(_: int, carry: Any) -> Any:
            rows, recent, chunk = carry
            none_B0 = jnp.zeros((len(rows.length_B), 0), jnp.int32)
            return decode_round(weights, none_B0, rows, Past(cache, recent, base_B), chunk, None, program)

        chunk = empty_chunk(len(rows.length_B), program)
        return jax.lax.fori_loop(0, CHUNK, one_round, (rows, recent, chunk))

    together = prompts_per_prefill(prompt_tokens, rows, groups)
    tokens_PT = jax.ShapeDtypeStruct((together, prompt_tokens), jnp.int32)
    step = jax.jit(decode, donate_argnums=(1, 3))
    with jax.set_mesh(mesh):
        programs = [
            prefill.lower(weights, tokens_PT, config=config),
            step.lower(weights, Rows(**values), cache, recent, integers_B),
        ]
    seconds, memories = [], []
    for lowered in programs:
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            needed, available = (size / GIB for size in memory_of_error(error))
            raise UserError(
                f"does not fit: needs at least {needed:.2f} GiB per chip, but only {available:.2f} GiB are available; "
                "use fewer rows or tokens, int8 weights, or a larger topology"
            ) from error
        module = Module(text_of(compiled))
        priced = operations(module, links_of(mesh, tpu), grid_loops(module, tpu))
        seconds.append(sum(o.count * o.exposed for o in priced))
        memories.append(compiled.memory_analysis())
    weights_bytes = sum(map(shard_bytes, jax.tree.leaves(weights))) - shard_bytes(weights.others["embedding"])
    cache_bytes = sum(map(shard_bytes, jax.tree.leaves(cache)))
    return DecodePlan(
        topology=tpu.name,
        tensor=tensor,
        rows=rows,
        slots=slots,
        weights_bytes=weights_bytes,
        cache_bytes=cache_bytes,
        peak_bytes=max(
            memory.peak_memory_in_bytes + cached
            for memory, cached in zip(memories, (cache_bytes, 0))
            if memory is not None
        ),
        available_bytes=tpu.chip.hbm_bytes,
        prefill_seconds=seconds[0] * math.ceil(rows / together),
        token_seconds=seconds[1] / CHUNK,
        bound_seconds=(weights_bytes + cache_bytes) / tpu.chip.hbm_bandwidth,
    )


def _abstract_cache(config: CodeGenConfig, mesh: Mesh, rows: int, slots: int) -> Any:
    sharding = NamedSharding(mesh, spec("batch", "heads", None, None))
    shapes = jax.eval_shape(lambda: empty_cache(config, rows, slots))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)
