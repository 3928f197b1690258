"""The bytes that collectives send over the links of a slice."""

from dataclasses import replace

import pytest

from codegen_jax.planning.hlo import Instruction
from codegen_jax.planning.links import Links, first_group, traffic
from codegen_jax.planning.slices import parse_slice

V4 = parse_slice("v4-512")  # 4 x 8 x 8, all rings; 45 GB/s per link and direction, 1.05 GHz
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
def test_bytes_received_are_those_of_a_ring_algorithm(opcode, shape, received):
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
def test_replica_groups_are_parsed_in_every_notation_of_xla(groups, members):
    assert first_group(f", replica_groups={groups}, use_global_device_ids=true") == members


def test_a_group_uses_both_directions_of_each_ring_that_it_spans():
    links = Links(V4, COORDINATES)
    ring, plane = list(range(8)), list(range(64))
    assert links.seconds(ring, 90_000_000_000) == pytest.approx(1.0)
    assert links.seconds(plane, 180_000_000_000) == pytest.approx(1.0)
    open_line = replace(V4, name="v4-16", shape=(2, 2, 2))
    assert Links(open_line, [(0, 0, 0, 0), (0, 0, 1, 0)]).seconds([0, 1], 45_000_000_000) == pytest.approx(1.0)
    # only data-center links connect slices
    assert Links(V4, [(0, 0, 0, 0), (0, 0, 0, 1)]).seconds([0, 1], 6_250_000_000) == pytest.approx(1.0)


def test_few_bytes_take_a_microsecond_per_hop_to_the_farthest_member():
    links, plane = Links(V4, COORDINATES), list(range(64))
    assert links.seconds(plane, 8) == pytest.approx(8e-6)  # halfway around two rings of 8
    line = replace(V4, name="v5e-4", kind="v5e", shape=(2, 2))
    assert Links(line, [(0, 0, 0, 0), (0, 1, 0, 0)]).seconds([0, 1], 8) == pytest.approx(1e-6)
