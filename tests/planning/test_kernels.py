"""Cycles of Pallas kernels, counted in machine code: hand-written code, and that of the real compiler."""

from pathlib import Path

import pytest

from codegen_jax.planning.hlo import Instruction
from codegen_jax.planning.kernels import GridLoop, kernel_cycles, parse_loop, splash_flops

# 100 bundles in every step; 400 per tile, 200 at the first and 100 at the last tile of a row
CODE = (Path(__file__).parent / "hand_made.bundles").read_text()


def kernel(phase, shape, *, results=None, grid="s8[1,4,4]{2,1,0}", key=None, layout=1):
    operands = f"{grid}, {grid}, {shape}, {key or shape}, {key or shape}"
    metadata = f', kernel_metadata={{"xprof_metadata":"{{\\"q_layout\\": {layout}}}"}}'
    attributes = f', custom_call_target="tpu_custom_call", operand_layout_constraints={{{operands}}}{metadata}'
    return Instruction(f"splash_mha_{phase}_residuals.2", "custom-call", f"({results or shape})", (), attributes)


def test_machine_code_is_split_into_what_every_step_and_what_some_steps_issue():
    assert parse_loop("kernel", CODE) == GridLoop(steps=128, always=100, tile=400, edges=300)


def test_a_kernels_cycles_count_the_tiles_that_the_mask_keeps_and_the_edges_of_rows():
    loop = GridLoop(steps=128, always=100, tile=400, edges=300)
    assert kernel_cycles(kernel("fwd", "bf16[16,2048,64]{2,1,0}"), loop) == 128 * (100 + 400 * 10 / 16 + 300 / 4)


@pytest.mark.parametrize(
    ("old", "new"), [("LB:", "  :"), ("0x40 ", "0x40 LB:"), ("loop exit test", "other test"), ("sbr.rel", "other")]
)
def test_machine_code_of_another_form_is_an_error(old, new):
    with pytest.raises(ValueError, match="kernel: no cost model"):
        parse_loop("kernel", CODE.replace(old, new))


@pytest.mark.parametrize(
    ("phase", "shape", "other", "flops"),
    [
        # 10 of 16 tiles are on or below the diagonal
        ("fwd", "bf16[4,24,2048,256]{3,2,1,0}", {}, 2 * 2 * 4 * 24 * 256 * 2048**2 * 10 / 16),
        ("dkv", "bf16[4,24,2048,256]{3,2,1,0}", {}, 2 * 4 * 4 * 24 * 256 * 2048**2 * 10 / 16),
        # 64 channels occupy 128 lanes
        ("dq", "bf16[16,64,2048]{2,1,0}", {"layout": 2}, 2 * 3 * 16 * 128 * 2048**2 * 10 / 16),
        # the fused backward kernel also computes dq, as four partial sums
        (
            "dkv",
            "bf16[16,2048,128]{2,1,0}",
            {"results": "bf16[4,16,2048,128]{3,2,1,0}, bf16[16,2048,128]{2,1,0}, bf16[16,2048,128]{2,1,0}"},
            2 * 5 * 16 * 128 * 2048**2 * 10 / 16,
        ),
        # 32 heads of queries share 8 of keys; dk and dv have 8
        (
            "dkv",
            "bf16[32,4096,128]{2,1,0}",
            {"key": "bf16[8,4096,128]{2,1,0}", "results": "bf16[8,4096,128]{2,1,0}, bf16[8,4096,128]{2,1,0}"},
            2 * 4 * 32 * 128 * 4096**2 * 10 / 16,
        ),
        ("fwd", "f32[8,1024,256]{2,1,0}", {"grid": "s8[1,2,4]{2,1,0}"}, 2 * 2 * 8 * 256 * 1024**2 * 6 / 8),
    ],
)
def test_flops_count_unmasked_tiles_full_lanes_and_heads_of_queries(phase, shape, other, flops):
    assert splash_flops(kernel(phase, shape, **other)) == flops


def test_an_unknown_kernel_is_an_error_rather_than_costing_nothing():
    with pytest.raises(ValueError, match="cost model"):
        splash_flops(Instruction("mystery", "custom-call", "bf16[8,8]", (), ', custom_call_target="tpu_custom_call"'))
