"""Plans for a small model on a small slice, made with the real TPU compiler."""

import json
import re
from dataclasses import replace

import jax
import pytest

pytest.importorskip("libtpu", reason="the TPU compiler; pip install libtpu")

from codegen_jax.cli import main
from codegen_jax.config import AdapterConfig, MeshConfig
from codegen_jax.errors import UserError
from codegen_jax.planning import calibration
from codegen_jax.planning.fit import fit
from codegen_jax.planning.hlo import Module
from codegen_jax.planning.links import SPARSE_CORE_STARTS
from codegen_jax.planning.plan import make_plan, memory_of_error
from codegen_jax.planning.plan_report import describe, plot
from codegen_jax.planning.slices import parse_slice, slice_devices
from codegen_jax.sharding import make_mesh
from codegen_jax.training.resolve import resolve
from tests.runs import tiny_run

V4_32 = parse_slice("v4-32")


def run(n_layer=4, mesh=(4, 4, 1), rows=32, **training):
    return tiny_run(
        model={
            "n_layer": n_layer,
            "n_embd": 512,
            "n_head": 4,
            "rotary_dim": 64,
            "head_dim": 128,
            "n_positions": 512,
            "dtype": "bfloat16",
        },
        data={"sequence_length": 512},
        training={"batch_size": rows, "remat": "dots", **training},
        mesh=MeshConfig(*mesh),
    )


@pytest.fixture(scope="module")
def hlo(tmp_path_factory):
    return tmp_path_factory.mktemp("plan") / "step.hlo"


@pytest.fixture(scope="module")
def plan(hlo):
    return make_plan(run(), V4_32, dump_hlo=hlo)


def test_twice_the_layers_take_twice_the_time_and_activations(plan):
    deeper = make_plan(run(n_layer=8), V4_32)
    layers = lambda plan, depth: sum(o.count * o.seconds for o in plan.operations if o.count == depth)
    assert layers(deeper, 8) == pytest.approx(2 * layers(plan, 4), rel=0.05)
    assert layers(plan, 4) > 0.3 * plan.step_seconds
    assert deeper.memory.activations == 2 * plan.memory.activations


def test_state_is_sharded_over_fsdp(plan):
    # a quarter of every matrix and embedding, and all of every vector; float32, two moments and the step count
    assert plan.memory.parameters == pytest.approx(run().model.n_params * 4 / 4, rel=0.02)
    assert plan.memory.moments == pytest.approx(2 * plan.memory.parameters, abs=16)
    assert plan.memory.fits and plan.memory.peak < plan.memory.available
    parts = ("parameters", "moments", "activations", "temporary")
    assert sum(getattr(plan.memory, name) for name in parts) == plan.memory.peak
    assert dict((name, shard) for name, _, _, shard in plan.parameters)["blocks.fc_in"] == (4, 128, 2048)


def test_compiled_products_match_the_model_and_attention_runs_in_kernels(plan):
    # 6 FLOPs per parameter and token; the embedding is a lookup; rotary permutations add a little
    model = run().model
    expected = 6 * (model.n_params - model.vocab_size * model.n_embd) * plan.tokens
    counted = sum(o.count * o.flops for o in plan.operations if o.kind == "matmul")
    assert expected <= counted < 1.15 * expected
    assert sum(o.count for o in plan.operations if o.kind == "pallas") == 2 * model.n_layer


def inside_loops(path):
    """The instructions inside the loops over layers."""
    module = Module(path.read_text())
    loops = [i.called("body") for i, _ in module.executed() if i.opcode == "while"]
    return [i for body in loops for i in module.computations[body].values()]


def test_weights_are_gathered_in_bfloat16_and_gradients_reduce_scattered(plan, hlo):
    inside = inside_loops(hlo)
    gathers = [i for i in inside if i.opcode.startswith("all-gather") and not i.opcode.endswith("-done")]
    assert len(gathers) == 6 + 6 and all(i.opcode == "all-gather-start" for i in gathers)
    assert {dtype for i in gathers for dtype, dims in i.arrays if len(dims) > 1} == {"bf16"}
    assert sum(i.opcode == "reduce-scatter" for i in inside) == 6
    assert not [i for i in inside if i.opcode.startswith("all-reduce")]


def test_heads_of_80_channels_are_gathered_without_padding_and_reduce_scattered(plan, hlo):
    path = hlo.with_name("heads_of_80.hlo")
    config = run(n_layer=2)
    make_plan(replace(config, model=replace(config.model, head_dim=80)), V4_32, dump_hlo=path)
    inside = inside_loops(path)
    gathered = {dims for i in inside if i.opcode == "all-gather-start" for _, dims in i.arrays if len(dims) > 1}
    assert {(512, 320), (320, 512)} <= gathered and not [dims for dims in gathered if 80 in dims]
    assert sum(i.opcode == "reduce-scatter" for i in inside) == 6
    assert not [i for i in inside if i.opcode.startswith("all-reduce")]


def test_on_v5p_the_sparse_cores_gather_and_reduce_what_v4_does(plan, hlo):
    path = hlo.with_name("sparse_cores.hlo")
    on_v5p = make_plan(run(), parse_slice("v5p-32"), dump_hlo=path)
    for kind in ("all-gather", "reduce-scatter"):  # of the layers
        received = [sum(o.bytes for o in p.operations if (o.kind, o.count) == (kind, 4)) for p in (plan, on_v5p)]
        assert received[0] == received[1] > 0
    opcodes = [i.opcode for i in inside_loops(path)]
    assert sum(opcode in SPARSE_CORE_STARTS for opcode in opcodes) == 6 + 6 + 6
    assert not [opcode for opcode in opcodes if opcode.startswith(("all-", "reduce-scatter"))]


def test_no_weight_is_ever_gathered_in_float32(hlo):
    shapes = set(re.findall(r"f32\[(?:1,)?512,2048\]|f32\[(?:1,)?2048,512\]|f32\[512,4,128\]", hlo.read_text()))
    assert not shapes


def test_tensor_parallel_layers_reduce_attention_and_mlp_together(hlo):
    path = hlo.with_name("tensor.hlo")
    make_plan(run(mesh=(2, 2, 4)), V4_32, dump_hlo=path)
    module = Module(path.read_text())
    for loop, _ in module.executed():
        if loop.opcode == "while" and module.trip_count(loop) == 4:
            body = module.computations[loop.called("body")].values()
            reduced = [
                a for i in body if i.opcode.startswith("all-reduce") and i.opcode != "all-reduce-done" for a in i.arrays
            ]
            activations = [dims for dtype, dims in reduced if dims[-1:] == (512,) and len(dims) > 2]
            assert len(activations) == 1


def test_an_adapter_has_the_only_moments_and_gradients(plan):
    adapted = replace(run(), init_from="base", adapter=AdapterConfig(rank=8, quantize="nf4"))
    found = make_plan(adapted, V4_32)
    layer = 12 * 512**2 // 4  # weights of a layer per chip
    tables, rest = 2 * 512 * 512 * 2 // 4, 100_000
    trained = 4 * 4 * 8 * (4 * 512 + 512 + 2 * 512 + 2 * (5 * 512))  # bytes of A and B in four layers, at most
    in_4_bits = 4 * layer * (0.5 + 2 / 64)
    assert found.memory.parameters == pytest.approx(in_4_bits + tables + trained, abs=rest)
    assert found.memory.moments < 2 * trained + rest < 0.2 * plan.memory.moments
    assert "reduce-scatter" in plan.collectives and "reduce-scatter" not in found.collectives


def test_with_two_slices_parameter_traffic_stays_within_each_slice(plan):
    two = make_plan(run(mesh=(8, 4, 1)), V4_32, slices=2)
    in_layers = lambda p: sum(o.bytes for o in p.operations if o.kind == "all-gather" and o.count == 4)
    assert in_layers(plan) == in_layers(two) > 0
    # only gradient sums cross the slow network: twice half of a quarter of a chip's float32 shard
    crossing = sum(o.count * o.bytes for o in two.operations if o.kind == "cross-slice")
    assert crossing == pytest.approx(plan.memory.parameters / 4, rel=0.1)
    assert not [o for o in plan.operations if o.kind == "cross-slice"]


def test_a_run_that_does_not_fit_gets_a_report_with_remedies():
    large = make_plan(run(rows=16 * 4096, n_layer=8), V4_32)
    assert not large.memory.fits and large.memory.peak > large.memory.available == int(30.75 * 2**30)
    text = describe(large)
    assert "GiB too much" in text and "use any one of: --training.remat qkv_attention" in text
    assert "gradient_accumulation_steps 2" in text and "estimates" not in large.to_dict()


def test_memory_is_parsed_from_both_forms_of_the_compilers_message():
    gib = 2**30
    new = "required for HLO temporaries (31.02G) exceeds available HBM (30.75G). HLO module"
    old = "Ran out of memory in memory space hbm. Used 34.50G of 30.75G hbm. Exceeded hbm capacity by 3.75G."
    error = lambda text: jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {text}")
    assert memory_of_error(error(new)) == (int(31.02 * gib), int(30.75 * gib))
    assert memory_of_error(error(old)) == (int(34.5 * gib), int(30.75 * gib))
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        memory_of_error(jax.errors.JaxRuntimeError("INTERNAL: 3.0G of 4.0G"))


def test_report_and_json_agree_and_a_plot_is_written(plan, tmp_path):
    text, values = describe(plan), json.loads(json.dumps(plan.to_dict()))
    assert f"MFU {values['estimates']['mfu']:.1%}" in text
    assert values["estimates"]["step_seconds"] < values["estimates"]["step_seconds_without_overlap"]
    assert values["collectives"]["reduce-scatter"]["exposed_seconds"] > 0
    plot(plan, tmp_path / "plan.png")
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def compiler(plan, monkeypatch):
    """Replace the compiler: install(fits, seconds) gets functions of the training config and the mesh."""

    def install(fits, seconds):
        tried = []

        def compiled(config, tpu, slices):
            resolve(config, make_mesh(config.mesh, slice_devices(tpu, slices)))
            training, mesh = config.training, config.mesh
            tried.append((training.remat, training.gradient_accumulation_steps, mesh.fsdp))
            slow = seconds(training, mesh)
            operations = [replace(plan.operations[0], count=1, seconds=slow, exposed=slow)]
            memory = plan.memory if fits(training, mesh) else replace(plan.memory, temporary=None)
            return replace(plan, memory=memory, operations=operations, mesh=vars(mesh))

        monkeypatch.setattr("codegen_jax.planning.fit.make_plan", compiled)
        return tried

    return install


def recomputation(training):
    return ["dots", "qkv_attention", "attention", "full"].index(training.remat)


def test_the_search_finds_the_fastest_plan_that_fits(compiler):
    """Less remat is faster but needs more memory; more micro-batches are slower but need less."""
    tried = compiler(
        fits=lambda training, mesh: recomputation(training) >= 3 - training.gradient_accumulation_steps,
        seconds=lambda training, mesh: (
            1 + recomputation(training) + training.gradient_accumulation_steps / 10 + abs(mesh.fsdp - 8) / 100
        ),
    )
    lines = []
    config, found = fit(run(rows=64), V4_32, 1, lines.append)
    assert (config.training.remat, config.training.gradient_accumulation_steps) == ("dots", 4)
    assert config.mesh == MeshConfig(2, 8, 1) and found.memory.fits
    assert ("full", 1, 4) not in tried  # attention fits, and full is slower
    assert len(lines) == len(tried) and any("does not fit" in line for line in lines)


@pytest.mark.parametrize(("mesh", "first"), [((4, -1, 1), (4, 4, 1)), ((2, 2, -1), (2, 2, 4))])
def test_the_search_starts_with_the_configs_mesh(compiler, mesh, first):
    compiler(fits=lambda training, mesh: True, seconds=lambda training, mesh: 1)
    config, _ = fit(run(rows=64, mesh=mesh), V4_32, 1, [].append)
    assert config.mesh == MeshConfig(*first)


@pytest.mark.parametrize("mesh", [(4, 4, 1), (4, 64, 1)])
def test_the_search_goes_on_to_meshes_that_divide_the_slice_and_need_less_memory(compiler, mesh):
    tried = compiler(
        fits=lambda training, mesh: mesh.fsdp == 16, seconds=lambda training, mesh: 1 + recomputation(training)
    )
    lines = []
    config, _ = fit(run(rows=64, mesh=mesh), V4_32, 1, lines.append)
    assert config.mesh == MeshConfig(1, 16, 1) and config.training.remat == "dots"
    others = [fsdp for *_, fsdp in tried if fsdp != 16]
    assert ("full", 4, 16) in tried and others == [4, 8]  # none twice, and none with fewer shards
    assert len([line for line in lines if line.startswith("mesh")]) == (mesh == (4, 64, 1))  # said once


def test_if_no_mesh_divides_the_batch_or_nothing_fits_the_search_says_so_in_one_line(compiler):
    compiler(fits=lambda training, mesh: False, seconds=lambda training, mesh: 1)
    with pytest.raises(UserError, match="nothing fits on v4-32"):
        fit(run(rows=64), V4_32, 1, [].append)
    with pytest.raises(UserError, match="no mesh divides the model and the batch: training"):
        fit(run(rows=3), V4_32, 1, [].append)


def test_the_whole_run_is_given_in_days_chip_hours_and_money(plan):
    hours = plan.steps * plan.step_seconds / 3600
    assert plan.steps == run().training.steps and plan.chip_hours == pytest.approx(16 * hours)
    assert f"{hours / 24:,.1f} days, {16 * hours:,.0f} chip-hours, without" in describe(plan)
    assert f"{16 * hours * 3.5:,.0f} at 3.5 per chip-hour" in describe(plan, price=3.5)
    assert plan.to_dict(price=2)["run"]["cost"] == 2 * plan.chip_hours and plan.to_dict()["run"]["cost"] is None
    assert "training.epochs" in describe(replace(plan, steps=None))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--topology", "v4-13"], "--topology"),
        (["--topology", "v4-32", "--mesh.data", "3"], "mesh"),
        (["--topology", "v4-512", "--training.gradient_accumulation_steps", "2"], "batch_size"),
        (["--topology", "v4-32", "--slices", "0"], "--slices"),
        (["--topology", "v4-32", "--price", "-1"], "--price"),
        (
            ["--topology", "v4-512", "--slices", "3", "--mesh.data", "-1", "--mesh.fsdp", "64"],
            "n_embd|slices|batch_size",
        ),
    ],
)
def test_bad_input_is_reported_in_one_line(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["plan", "configs/350m_nl.yaml", *words])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and re.search(message, error) and "Traceback" not in error


def test_the_range_is_as_wide_as_the_errors_of_measured_steps_and_names_those_on_the_same_kind(plan, monkeypatch):
    steps = [calibration.Step("a", "v4-128", 2.0, 1.0, ""), calibration.Step("b", "v5p-512", 1.0, 1.5, "")]
    monkeypatch.setattr(calibration, "STEPS", steps)
    seconds = plan.step_seconds
    assert plan.to_dict()["estimates"]["step_seconds_range"] == (0.5 * seconds, 1.5 * seconds)
    text = describe(plan)
    assert f"{0.5 * seconds:8.4f} to {1.5 * seconds:.4f} s, MFU {plan.mfu / 1.5:.1%} to {2 * plan.mfu:.1%}" in text
    assert "measured on v4        a, v4-128: 0.50\n" in text and "v5p" not in text
