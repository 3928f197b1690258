"""A step's time from the compiler's schedule, with collectives that overlap computation."""

import re
from pathlib import Path

import pytest

from codegen_jax.planning.hlo import Module, UnknownForm
from codegen_jax.planning.links import Links
from codegen_jax.planning.schedule import operations
from codegen_jax.planning.slices import parse_slice

TEXT = (Path(__file__).parent / "hand_made.hlo").read_text()
V4 = parse_slice("v4-512")  # 4 x 8 x 8, all rings; 45 GB/s per link and direction, 1.05 GHz
COORDINATES = [(x, y, z, 0) for x in range(4) for y in range(8) for z in range(8)]


def operations_by_name(text):
    return {o.name: o for o in operations(Module(text), Links(V4, COORDINATES), {})}


def test_durations_are_the_compilers_cycles_and_loops_multiply_them():
    found = operations_by_name(TEXT)
    assert found["product"].seconds == pytest.approx(1e-6) and found["product"].count == 3
    assert (found["product"].kind, found["heads"].kind, found["copy"].kind) == ("matmul", "matmul", "other")


def test_an_asynchronous_gather_is_exposed_only_beyond_the_overlapping_work():
    gather = operations_by_name(TEXT)["gather-start"]
    assert gather.seconds == pytest.approx(3e-6) and gather.exposed == pytest.approx(2e-6)  # behind a product of 1 us
    assert operations_by_name(TEXT.replace('"1050"', '"3150"'))["gather-start"].exposed == 0
    larger = TEXT.replace("bf16[16,32]{1,0}) all-gather-start", "bf16[1600,320]{1,0}) all-gather-start")
    gather = operations_by_name(larger)["gather-start"]
    assert gather.exposed == pytest.approx(gather.seconds - 1e-6)


def test_a_synchronous_collective_blocks_the_chip():
    text = TEXT.replace("all-gather-start", "all-gather").replace(
        "(bf16[4,32]{1,0}, bf16[16,32]{1,0}) all", "bf16[16,32]{1,0} all"
    )
    gather = operations_by_name(text)["gather-start"]
    assert gather.exposed == gather.seconds > 0


ASYNCHRONOUS = (Path(__file__).parent / "asynchronous_fusions.hlo").read_text()


def test_a_collective_spread_over_fusions_is_charged_once_and_its_products_too():
    found = operations_by_name(ASYNCHRONOUS)
    assert set(found) == {"gather-start", "product", "second-product", "late-start", "last-product", "sum"}
    gather = found["gather-start"]
    assert (gather.kind, gather.bytes) == ("all-gather", 768)
    assert (found["product"].kind, found["product"].seconds) == ("matmul", pytest.approx(2e-6))
    assert found["product"].flops == found["second-product"].flops == 2 * 8 * 32 * 16
    assert gather.exposed == 0 and found["late-start"].exposed == 0  # hidden behind two products, and behind one


def test_what_the_products_do_not_hide_of_such_a_collective_is_exposed_when_it_must_be_done():
    larger = ASYNCHRONOUS.replace("bf16[16,32]{1,0} all-gather(", "bf16[16000,32]{1,0} all-gather(")
    gather = operations_by_name(larger)["gather-start"]
    assert gather.seconds == pytest.approx(768_000 / 45e9) and gather.exposed == pytest.approx(gather.seconds - 4e-6)


def test_a_part_of_a_collective_that_nothing_started_is_an_error_rather_than_costing_nothing():
    unstarted = ASYNCHRONOUS.replace("AsyncCollectiveStart", "Other")
    with pytest.raises(UnknownForm, match="nothing has started"):
        operations_by_name("\n".join(line for line in unstarted.splitlines() if "%gather-start =" not in line))


def test_a_reduction_of_which_a_fusion_keeps_a_shard_costs_a_reduce_scatter():
    found = operations_by_name(ASYNCHRONOUS)["sum"]
    assert (found.kind, found.bytes) == ("reduce-scatter", 3 * 1024 // 4) and found.exposed == pytest.approx(3e-6)


SPARSE_CORES = (Path(__file__).parent / "sparse_cores.hlo").read_text()


def with_calls(text):
    """The form of libtpu 0.0.42: what gives a program its operands also names it."""
    text = re.sub(r".*custom-call-start\(\).*\n", "", text)
    calls = re.sub(r"update\(%(\w+).start, (.*)\)", r'start(\2), to_apply=%\1, thread="sparsecore"', text)
    return re.sub(r", \(s32[^=]*\)\) custom-call-start", ") call-start", calls.replace("custom-call-done", "call-done"))


@pytest.mark.parametrize("text", [SPARSE_CORES, with_calls(SPARSE_CORES)])
def test_sparse_cores_work_beside_products_from_when_they_get_their_operands(text):
    found = operations_by_name(text)
    gather, rows = found["gather.update"], found["rows.update"]
    assert (gather.kind, gather.bytes, gather.seconds) == ("all-gather", 768_000, pytest.approx(768_000 / 45e9))
    assert gather.exposed == pytest.approx(gather.seconds - 2e-6)  # hidden behind the second product only
    assert (rows.kind, rows.seconds) == ("other", pytest.approx(2 * 4096 * 2560 * 2 / 1228e9))
    assert rows.exposed == pytest.approx(rows.seconds - gather.exposed)


def test_work_of_sparse_cores_whose_program_is_not_found_is_an_error_rather_than_a_copy():
    with pytest.raises(UnknownForm, match=r"gather\.update: expected a program"):
        operations_by_name(SPARSE_CORES.replace("called_computations={%gather}", "other={%gather}"))


def test_a_loop_hides_a_collective_that_runs_around_it():
    start = "  %around-start = (bf16[4,32]{1,0}, bf16[16,32]{1,0}) all-gather-start(%x), replica_groups={{0,1,2,3}}\n"
    done = "  %around-done = bf16[16,32]{1,0} all-gather-done(%around-start)\n"
    outside = TEXT.replace("  %loop = ", f"{start}  %loop = ").replace("  ROOT %copy", f"{done}  ROOT %copy")
    assert operations_by_name(outside)["around-start"].exposed == 0
