"""A step's time from the compiler's schedule, with collectives that overlap computation."""

from pathlib import Path

import pytest

from codegen_jax.planning.hlo import Instruction, Module
from codegen_jax.planning.links import Links
from codegen_jax.planning.schedule import operations, splash_flops
from codegen_jax.planning.slices import parse_slice

TEXT = (Path(__file__).parent / "hand_made.hlo").read_text()
V4 = parse_slice("v4-512")  # 4 x 8 x 8, all rings; 45 GB/s per link and direction, 1.05 GHz
COORDINATES = [(x, y, z, 0) for x in range(4) for y in range(8) for z in range(8)]


def operations_by_name(text):
    return {o.name: o for o in operations(Module(text), Links(V4, COORDINATES))}


def test_durations_are_the_compilers_cycles_and_loops_multiply_them():
    found = operations_by_name(TEXT)
    assert found["product"].seconds == pytest.approx(1e-6) and found["product"].count == 3
    assert (found["product"].kind, found["heads"].kind, found["copy"].kind) == ("matmul", "matmul", "other")


def test_an_asynchronous_gather_is_exposed_only_beyond_the_overlapping_work():
    gather = operations_by_name(TEXT)["gather-start"]
    assert gather.seconds == pytest.approx(768 / 45e9) and gather.exposed == 0  # hidden behind a product of 1 us
    larger = TEXT.replace("bf16[16,32]{1,0}) all-gather-start", "bf16[1600,320]{1,0}) all-gather-start")
    gather = operations_by_name(larger)["gather-start"]
    assert gather.exposed == pytest.approx(gather.seconds - 1e-6)


def test_a_synchronous_collective_blocks_the_chip():
    text = TEXT.replace("all-gather-start", "all-gather").replace(
        "(bf16[4,32]{1,0}, bf16[16,32]{1,0}) all", "bf16[16,32]{1,0} all"
    )
    gather = operations_by_name(text)["gather-start"]
    assert gather.exposed == gather.seconds > 0


@pytest.mark.parametrize(
    ("phase", "shape", "flops"),
    [
        (
            "fwd",
            "bf16[4,24,2048,256]{3,2,1,0}",
            2 * 2 * 4 * 24 * 256 * 2048**2 * 10 / 16,
        ),  # 10 of 16 tiles are on or below the diagonal
        ("dkv", "bf16[4,24,2048,256]{3,2,1,0}", 2 * 4 * 4 * 24 * 256 * 2048**2 * 10 / 16),
        ("dq", "bf16[16,2048,64]{2,1,0}", 2 * 3 * 16 * 128 * 2048**2 * 10 / 16),  # 64 channels occupy 128 lanes
    ],
)
def test_flops_of_attention_kernels_count_unmasked_tiles_and_full_lanes(phase, shape, flops):
    attributes = (
        ', custom_call_target="tpu_custom_call", operand_layout_constraints={s8[1,4,4]{2,1,0}, s8[1,4,4]{2,1,0}}'
    )
    kernel = Instruction(
        f"splash_mha_{phase}_residuals.2", "custom-call", f"(f32[4,512,128]{{2,1,0}}, {shape})", (), attributes
    )
    assert splash_flops(kernel) == flops


def test_an_unknown_kernel_is_an_error_rather_than_costing_nothing():
    with pytest.raises(ValueError, match="cost model"):
        splash_flops(Instruction("mystery", "custom-call", "bf16[8,8]", (), ', custom_call_target="tpu_custom_call"'))
