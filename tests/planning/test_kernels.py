"""Cycles of Pallas kernels, counted in machine code: hand-written code, and that of the real compiler."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.pallas.ops.tpu import flash_attention as flash

from codegen_jax.inference import cached_attention
from codegen_jax.model.attention import _splash
from codegen_jax.model.attention_tpu import attention_in_fast_memory
from codegen_jax.planning.hlo import Instruction, Module, UnknownForm
from codegen_jax.planning.kernels import GridLoop, grid_loops, kernel_cycles, kernel_flops, kernel_seconds, parse_loop
from codegen_jax.planning.slices import parse_slice, slice_devices

SLOW = pytest.mark.slow
# 100 bundles in every step; 400 per tile, 200 at the first and 100 at the last tile of a row
CODE = (Path(__file__).parent / "hand_made.bundles").read_text()


def kernel(phase, shape, *, results=None, grid="s8[1,4,4]{2,1,0}", key=None, layout=1):
    operands = f"{grid}, {grid}, {shape}, {key or shape}, {key or shape}"
    metadata = f', kernel_metadata={{"xprof_metadata":"{{\\"q_layout\\": {layout}}}"}}'
    attributes = f', custom_call_target="tpu_custom_call", operand_layout_constraints={{{operands}}}{metadata}'
    return Instruction(f"splash_mha_{phase}_residuals.2", "custom-call", f"({results or shape})", (), attributes)


def test_machine_code_is_split_into_what_every_step_and_what_some_steps_issue():
    assert parse_loop("kernel", CODE) == GridLoop(steps=128, always=100, blocks=(400, 200, 100))


def test_a_kernels_cycles_count_the_tiles_that_the_mask_keeps_and_the_edges_of_rows():
    loop = GridLoop(steps=128, always=100, blocks=(400, 200, 100))
    assert kernel_cycles(kernel("fwd", "bf16[16,2048,64]{2,1,0}"), loop) == 128 * (100 + 400 * 10 / 16 + 300 / 4)


@pytest.mark.parametrize(("old", "new"), [("LB:", "  :"), ("0x40 ", "0x40 LB:"), ("loop exit test", "other test")])
def test_machine_code_of_another_form_is_an_error(old, new):
    with pytest.raises(UnknownForm, match="kernel: no cost model"):
        parse_loop("kernel", CODE.replace(old, new))


def bundles(*jumps):
    """A loop of machine code with these jumps, from one address to another, in 128 grid steps."""
    lines = {16: "LB: > { body }", 0x500: "  : > { test %s8, 130 /* loop exit test */ }"}
    for number, (begin, end) in enumerate(jumps):
        lines[begin] = f"  : > {{ sbr.rel (%p1) target = $region{number} }}"
        lines[end] = f"PF: > {{ next }} /* Start/End empty region {number} */"
    return "\n".join(f"  {address:#x} {line}" for address, line in sorted(lines.items()))


def test_a_block_before_the_tiles_starts_copies_in_every_step_and_one_after_them_is_an_error():
    before, tiles, tile = (0x20, 0x80), (0x90, 0x300), (0x100, 0x200)
    assert parse_loop("kernel", bundles(before, tiles, tile)) == GridLoop(128, 0x500 - 16 - 0x100, (0x100,))
    with pytest.raises(UnknownForm, match="no branch holds all others"):
        parse_loop("kernel", bundles(before, tiles, tile, (0x310, 0x400)))


def test_tiles_without_a_branch_are_an_error():
    loop = parse_loop("kernel", CODE.replace("sbr.rel", "other"))
    assert loop == GridLoop(steps=128, always=800, blocks=())
    with pytest.raises(UnknownForm, match="no blocks for tiles"):
        kernel_cycles(kernel("fwd", "bf16[16,2048,64]{2,1,0}"), loop)


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
    assert kernel_flops(kernel(phase, shape, **other)) == flops


def test_our_kernels_take_a_block_of_queries_and_all_keys_up_to_it_per_step():
    call = lambda name, results, operand: Instruction(
        f"{name}.2",
        "custom-call",
        f"({results})",
        (),
        f', operand_layout_constraints={{{operand}, {operand}}}, kind="x"',
    )
    time_last, time_first = "bf16[2,8,80,2048]{3,2,1,0}", "bf16[2,24,2048,256]{3,2,1,0}"
    forward = call("attention_forward_512", f"{time_last}, f32[2,8,1,2048]{{3,2,1,0}}", time_last)
    backward = call("attention_backward_256", f"{time_first}, {time_first}, {time_first}", time_first)
    # with 4 blocks, 10 of 16 tiles are on or below the diagonal; with 8, 36 of 64
    assert kernel_flops(forward) == 2 * 2 * 16 * 128 * 2048**2 * 10 / 16
    assert kernel_flops(backward) == 2 * 5 * 48 * 256 * 2048**2 * 36 / 64
    loop = GridLoop(steps=32, always=100, blocks=(4000, 3000, 2000, 1000))
    assert kernel_cycles(forward, loop) == 32 * 100 + 32 / 4 * 10_000


def test_a_kernel_takes_as_long_as_moving_its_arrays_in_tiles_if_that_is_longer():
    tpu = parse_slice("v4-8")
    shape = "bf16[16,2044,64]{2,1,0}"  # moved as 16 x 2,048 x 128
    attention = kernel("fwd", shape, grid="s8[1,1,1]{2,1,0}")
    short, long = (GridLoop(steps=16, always=always, blocks=()) for always in (100, 1_000_000))
    grids, moved = 2 * 8 * 128, 4 * 2 * 16 * 2048 * 128  # queries, keys, values and the result
    assert kernel_seconds(attention, short, tpu.chip) == (grids + moved) / tpu.chip.hbm_bandwidth
    assert kernel_seconds(attention, long, tpu.chip) == 16 * 1_000_000 / tpu.chip.clock


def test_an_unknown_kernel_is_an_error_rather_than_costing_nothing():
    with pytest.raises(UnknownForm, match="cost model"):
        kernel_flops(Instruction("mystery", "custom-call", "bf16[8,8]", (), ', custom_call_target="tpu_custom_call"'))


def kernels_of(attention, head_dim, segments, tpu):
    """The kernels of a forward and a backward pass over eight heads, compiled, and their cycles."""
    mesh = jax.sharding.Mesh(slice_devices(tpu)[:1], ("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    x = jax.ShapeDtypeStruct((1, 2048, 8, head_dim), jnp.bfloat16, sharding=sharding)
    ids = jax.ShapeDtypeStruct((1, 2048), jnp.int32, sharding=sharding)
    value = lambda q, k, v, ids: attention(q, k, v, (ids, ids) if segments else None, interpret=False).sum()
    with jax.set_mesh(mesh):
        module = Module(jax.jit(jax.grad(value, (0, 1, 2))).lower(x, x, x, ids).compile().as_text())
    loops = grid_loops(module, tpu)
    return [(i, kernel_cycles(i, loops[i.name])) for i, _ in module.executed() if i.is_pallas]


def test_our_kernels_fit_a_v4_core_with_the_largest_heads_and_segments():
    pytest.importorskip("libtpu", reason="the TPU compiler; pip install libtpu")
    forward, backward = kernels_of(attention_in_fast_memory, 256, True, parse_slice("v4-8"))
    for (kernel, cycles), products in ((forward, 2), (backward, 5)):
        least = products * 8 * 2048 * 2049 * 256 / (2 * 131_072)  # of one core, which has half of the eight heads
        assert kernel_flops(kernel) > 2 * 131_072 * least and least < cycles < 2 * least


@pytest.mark.parametrize(
    ("queries", "keys", "kept"),
    [(512, 512, 10 / 16), pytest.param(1024, 512, 6 / 8, marks=SLOW), pytest.param(512, 2048, 1, marks=SLOW)],
)
def test_the_older_flash_attention_is_counted_by_the_grids_of_its_kernels(queries, keys, kept):
    pytest.importorskip("libtpu", reason="the TPU compiler; pip install libtpu")
    forward = {"block_q": queries, "block_k_major": keys, "block_k": keys, "block_b": 1}
    dkv = {"block_q_major_dkv": queries, "block_q_dkv": 512, "block_k_major_dkv": keys, "block_k_dkv": 512}
    dq = {"block_q_dq": queries, "block_k_major_dq": keys, "block_k_dq": 512}
    sizes = flash.BlockSizes(**forward, **dkv, **dq)

    def attention(q, k, v, segments, interpret):
        q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
        return flash.flash_attention(q, k, v, causal=True, sm_scale=0.1, block_sizes=sizes)

    kernels = kernels_of(attention, 128, False, parse_slice("v4-8"))
    for (kernel, cycles), products in zip(kernels, (2, 3, 4), strict=True):  # forward, dq, dkv
        assert kernel_flops(kernel) == 2 * products * 8 * 128 * 2048**2 * kept
        assert 1 < cycles / (kernel_flops(kernel) / (2 * 131_072)) < 3  # two cores share the eight heads


@pytest.mark.parametrize(
    ("tpu", "tokens"),
    [("v4-8", 1), *(pytest.param(kind, 8, marks=SLOW) for kind in ("v5e-4", "v5p-8", "v6e-4"))],
)
def test_the_kernel_that_decodes_waits_for_memory_only(tpu, tokens):
    pytest.importorskip("libtpu", reason="the TPU compiler; pip install libtpu")
    tpu = parse_slice(tpu)
    device = jax.sharding.SingleDeviceSharding(slice_devices(tpu)[0])
    of = lambda *shape, dtype=jnp.bfloat16: jax.ShapeDtypeStruct(shape, dtype, sharding=device)
    pair = lambda slots: (of(2, 6, 256, slots), of(2, 6, slots, 256))
    q, row = of(2, 6, 8, 256), of(2, dtype=jnp.int32)
    lowered = jax.jit(cached_attention.kernel).lower(q, pair(tokens), pair(2048), pair(33), row, row)
    module = Module(lowered.compile().as_text())
    (i,) = (i for i, _ in module.executed() if i.is_pallas)
    loop = grid_loops(module, tpu)[i.name]
    assert kernel_flops(i) == 2 * 2 * 12 * 8 * 256 * 2048
    cache = 2 * 2 * 12 * 2048 * 256 / tpu.chip.hbm_bandwidth
    assert kernel_cycles(i, loop) / tpu.chip.clock < cache < kernel_seconds(i, loop, tpu.chip) < 1.3 * cache


@SLOW
@pytest.mark.parametrize("head_dim", [64, 80, 256])  # 350M; 2B; 6B and 16B
def test_our_kernels_issue_about_half_of_the_bundles_of_splash(head_dim):
    pytest.importorskip("libtpu", reason="the TPU compiler; pip install libtpu")
    total = lambda *args: sum(cycles for _, cycles in kernels_of(*args, parse_slice("v4-8")))
    ours, splash = total(attention_in_fast_memory, head_dim, False), total(_splash, head_dim, False)
    assert 0 < ours < 0.55 * splash
    assert ours < total(attention_in_fast_memory, head_dim, True) < 1.5 * ours
