"""Plan runs on slices of growing size: which is the smallest that fits, and which needs the fewest chip-hours."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from codegen_jax.config import MeshConfig, RunConfig
from codegen_jax.errors import UserError, require
from codegen_jax.planning.fit import REMAT, with_training
from codegen_jax.planning.plan import Plan, make_plan
from codegen_jax.planning.slices import KINDS, Slice, parse_slice, slice_devices
from codegen_jax.sharding import make_mesh
from codegen_jax.training.resolve import resolve

RUNS = ("350m_nl", "2b_nl", "6b_nl", "16b_nl")
LARGEST = 256  # chips: the slice of the paper's runs, v4-512
GROWTH = 4  # from a slice that fits to the next one
STATE_BYTES = 16  # per parameter: float32 parameters, gradients and two moments


@dataclass(frozen=True)
class Entry:
    """A run on a slice on which it fits.

    Attributes:
        run: the name of its config.
        kind: kind of TPU.
        chips: number of chips.
        plan: the plan.
    """

    run: str
    kind: str
    chips: int
    plan: Plan

    @property
    def chip_hours(self) -> float:
        """Time of all steps, times the number of chips, in hours."""
        return self.plan.chip_hours or 0.0  # a survey refuses runs whose number of steps depends on the data

    @property
    def days(self) -> float:
        """Time of all steps in days."""
        return self.chip_hours / self.chips / 24


def survey(
    configs: Mapping[str, RunConfig], kinds: Sequence[str], progress: Callable[[str], None] = lambda line: None
) -> list[Entry]:
    """Plan each run on slices of each kind: the smallest on which it fits, larger ones, and the largest of 256 chips.

    The mesh of the config is replaced: on a slice, fsdp has as many chips as on 256, if there are that many. There are
    as few micro-batches as allow the least recomputation, by the estimate of `remat: auto`. If the compiler finds that
    this does not fit, a micro-batch has one row per chip, and then full remat. `fit` finds faster settings for a single
    slice, with many more compilations.

    Args:
        configs: the runs, by name.
        kinds: kinds of TPU, of v4, v5p, v5e and v6e.
        progress: called with a line about each slice, also if it is left out.

    Raises:
        UserError: if a kind is unknown, libtpu is missing, a run's number of steps depends on its data, its mesh has a
            tensor axis, or nothing fits.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    require(not unknown, f"all: kinds of TPU are {', '.join(KINDS)}, got {', '.join(unknown)}")
    for config in configs.values():
        is_counted = config.training.epochs is None
        require(is_counted, "training.epochs: give --training.epochs null --training.steps N, since no data are read")
        require(config.mesh.tensor == 1, f"mesh.tensor: must be 1 with --all, got {config.mesh.tensor}")
    slice_devices(parse_slice("v4-8"))  # raises if there is no compiler
    result = []
    for name, config in configs.items():
        for kind in kinds:
            enough = 0
            for tpu in _slices(kind):
                chips = math.prod(tpu.shape)
                if chips < enough and chips != LARGEST:
                    continue
                try:
                    plan = _first_that_fits(config, tpu)
                except UserError as error:
                    progress(f"{name} on {tpu.name}: left out, {error}")
                    continue
                progress(f"{name} on {tpu.name}: {_summary(plan) if plan else 'does not fit'}")
                if plan:
                    result.append(Entry(name, kind, chips, plan))
                    enough = GROWTH * chips
    require(bool(result), f"all: no slice of up to {LARGEST} chips is large enough and divides training.batch_size")
    return result


def remarks(entry: Entry, entries: Sequence[Entry]) -> list[str]:
    """What distinguishes an entry among those of the same run and kind of TPU."""
    peers = [other for other in entries if (other.run, other.kind) == (entry.run, entry.kind)]
    found = ["smallest that fits"] if entry.chips == min(other.chips for other in peers) else []
    return [*found, "least chip-hours"] if entry.chip_hours == min(other.chip_hours for other in peers) else found


def _slices(kind: str) -> Iterator[Slice]:
    """The slices of a kind, from the smallest to the one with `LARGEST` chips."""
    for exponent in range(int(math.log2(LARGEST)) + 1):
        try:
            yield parse_slice(f"{kind}-{KINDS[kind].cores * 2**exponent}")
        except UserError:  # there is no slice of this size
            continue


def _first_that_fits(config: RunConfig, tpu: Slice) -> Plan | None:
    """The plan with the first settings that fit; None if none do.

    Raises:
        UserError: if the slice does not divide the batch or the model.
    """
    chips, batch = math.prod(tpu.shape), config.training.batch_size
    if not config.adapter.rank and STATE_BYTES * config.model.n_params > chips * tpu.chip.hbm_bytes:
        return None
    require(batch % chips == 0, f"{chips} chips do not divide training.batch_size {batch}")
    wanted = config.mesh.fsdp if config.mesh.fsdp > 0 else LARGEST // max(1, config.mesh.data)
    fsdp = wanted if wanted and chips % wanted == 0 else chips
    config = replace(config, mesh=MeshConfig(chips // fsdp, fsdp, 1))
    mesh = make_mesh(config.mesh, slice_devices(tpu))
    rows = batch // chips
    candidates = []
    for micro_batches in (2**n for n in range(rows.bit_length()) if rows % 2**n == 0):
        remat = resolve(with_training(config, micro_batches, "auto"), mesh).training.remat
        candidates.append((REMAT.index(remat), micro_batches))
    least_memory = (REMAT.index("full"), candidates[-1][1])
    for policy, micro_batches in dict.fromkeys([min(candidates), candidates[-1], least_memory]):
        plan = make_plan(with_training(config, micro_batches, REMAT[policy]), tpu)
        if plan.memory.fits:
            return plan
    return None


def _summary(plan: Plan) -> str:
    return f"{plan.step_seconds:.3f} s per step, MFU {plan.mfu:.1%}"
