from dataclasses import replace
from pathlib import Path

import pytest

from codegen_jax.planning.hlo import Instruction, Module
from codegen_jax.planning.schedule import Links, first_group, operations, splash_flops, traffic
from codegen_jax.planning.slices import parse_slice

TEXT = (Path(__file__).parent / "hand_made.hlo").read_text()
V4 = parse_slice("v4-512")  # 4 x 8 x 8, all rings; 45 GB/s a link and direction, 1.05 GHz
COORDINATES = [(x, y, z, 0) for x in range(4) for y in range(8) for z in range(8)]


def collective(opcode, shape, groups="{{0,1,2,3}}"):
    return Instruction("c", opcode, shape, ("x",), f", replica_groups={groups}, dimensions={{0}}")


@pytest.mark.parametrize(
    ("opcode", "shape", "received"),
    [
        ("all-gather", "bf16[16,32]{1,0}", 3 / 4 * 1024),
        ("all-gather-start", "(bf16[4,32]{1,0}, bf16[16,32]{1,0})", 3 / 4 * 1024),
        ("reduce-scatter", "bf16[4,32]{1,0}", 3 / 4 * 1024),
        ("all-reduce", "f32[16,32]{1,0:T(8,128)}", 2 * 3 / 4 * 2048),
        ("all-reduce", "(f32[16]{0}, f32[8]{0})", 2 * 3 / 4 * 96),
    ],
)
def test_bytes_are_those_that_a_ring_moves(opcode, shape, received):
    assert traffic(collective(opcode, shape)) == (received, [0, 1, 2, 3])


def test_a_permutation_moves_its_array_once():
    permute = Instruction("c", "collective-permute", "bf16[8]{0}", ("x",), ", source_target_pairs={{0,64},{64,0}}")
    assert traffic(permute) == (16, [0, 64])


@pytest.mark.parametrize(
    ("groups", "members"),
    [
        ("{{0,2,4,6},{1,3,5,7}}", [0, 2, 4, 6]),
        ("[2,4]<=[8]", [0, 1, 2, 3]),
        ("[2,4]<=[4,2]T(1,0)", [0, 2, 4, 6]),
        ("mesh['axis_0'=4,'axis_1'=2] {'axis_0'}", [0, 2, 4, 6]),
        ("mesh['axis_0'=4,'axis_1'=2] {'axis_1'}", [0, 1]),
        ("mesh['axis_0'=1,'axis_1'=4,'axis_2'=2], device_ids=([2,4]T(1,0)) {'axis_1'}", [0, 1, 2, 3]),
    ],
)
def test_groups_are_read_in_each_form_that_xla_writes(groups, members):
    assert first_group(f", replica_groups={groups}, use_global_device_ids=true") == members


def test_a_group_uses_both_ways_of_each_ring_that_it_spans():
    network = Links(V4, COORDINATES)
    ring, plane = list(range(8)), list(range(64))
    assert network.seconds(ring, 90_000_000_000) == pytest.approx(1.0)
    assert network.seconds(plane, 180_000_000_000) == pytest.approx(1.0)
    open_line = replace(V4, name="v4-16", shape=(2, 2, 2))
    assert Links(open_line, [(0, 0, 0, 0), (0, 0, 1, 0)]).seconds([0, 1], 45_000_000_000) == pytest.approx(1.0)
    # between slices only the data-centre network
    assert Links(V4, [(0, 0, 0, 0), (0, 0, 0, 1)]).seconds([0, 1], 6_250_000_000) == pytest.approx(1.0)


def by_name(text):
    return {o.name: o for o in operations(Module(text), Links(V4, COORDINATES))}


def test_operations_take_the_compilers_cycles_and_loops_repeat_them():
    found = by_name(TEXT)
    assert found["product"].seconds == pytest.approx(1e-6) and found["product"].count == 3
    assert (found["product"].kind, found["heads"].kind, found["copy"].kind) == ("matmul", "matmul", "other")


def test_a_gather_is_exposed_only_beyond_what_runs_beside_it():
    gather = by_name(TEXT)["gather-start"]
    assert gather.seconds == pytest.approx(768 / 45e9) and gather.exposed == 0  # hidden behind a product of 1 us
    larger = TEXT.replace("bf16[16,32]{1,0}) all-gather-start", "bf16[1600,320]{1,0}) all-gather-start")
    gather = by_name(larger)["gather-start"]
    assert gather.exposed == pytest.approx(gather.seconds - 1e-6)


def test_a_synchronous_collective_stops_the_chip():
    text = TEXT.replace("all-gather-start", "all-gather").replace(
        "(bf16[4,32]{1,0}, bf16[16,32]{1,0}) all", "bf16[16,32]{1,0} all"
    )
    gather = by_name(text)["gather-start"]
    assert gather.exposed == gather.seconds > 0


@pytest.mark.parametrize(
    ("phase", "shape", "flops"),
    [
        (
            "fwd",
            "bf16[4,24,2048,256]{3,2,1,0}",
            2 * 2 * 4 * 24 * 256 * 2048**2 * 10 / 16,
        ),  # 10 of 16 tiles are not above the diagonal
        ("dkv", "bf16[4,24,2048,256]{3,2,1,0}", 2 * 4 * 4 * 24 * 256 * 2048**2 * 10 / 16),
        ("dq", "bf16[16,2048,64]{2,1,0}", 2 * 3 * 16 * 128 * 2048**2 * 10 / 16),  # 64 channels fill 128 lanes
    ],
)
def test_attention_kernels_count_their_tiles_and_full_lanes(phase, shape, flops):
    attributes = (
        ', custom_call_target="tpu_custom_call", operand_layout_constraints={s8[1,4,4]{2,1,0}, s8[1,4,4]{2,1,0}}'
    )
    kernel = Instruction(
        f"splash_mha_{phase}_residuals.2", "custom-call", f"(f32[4,512,128]{{2,1,0}}, {shape})", (), attributes
    )
    assert splash_flops(kernel) == flops


def test_a_kernel_that_is_not_known_is_an_error_and_not_free():
    with pytest.raises(ValueError, match="cost model"):
        splash_flops(Instruction("mystery", "custom-call", "bf16[8,8]", (), ', custom_call_target="tpu_custom_call"'))
