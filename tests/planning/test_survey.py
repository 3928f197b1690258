"""Which slices a survey plans, with a compiler that only computes whether a run fits."""

import json
from dataclasses import replace

import pytest

pytest.importorskip("libtpu", reason="the TPU compiler; pip install libtpu")

from codegen_jax.cli import main
from codegen_jax.config import AdapterConfig, MeshConfig
from codegen_jax.config_file import load_config, shipped_config
from codegen_jax.errors import UserError
from codegen_jax.planning.plan import Memory, Plan
from codegen_jax.planning.schedule import Operation
from codegen_jax.planning.survey import remarks, survey
from codegen_jax.planning.survey_report import plot, table, to_dicts

GIB = 2**30


class Compiler:
    """Takes the place of `make_plan`: a row takes memory as the model's size, a tenth of it with full remat.

    Attributes:
        row_gib: GiB per row of 16B.
        tried: slice, rows per micro-batch and chip, and remat of each compilation.
    """

    def __init__(self):
        self.row_gib, self.tried = 10, []

    def __call__(self, config, tpu):
        training, mesh = config.training, config.mesh
        chips, accumulation = mesh.data * mesh.fsdp, training.gradient_accumulation_steps
        assert training.batch_size % (chips * accumulation) == 0
        rows = training.batch_size // chips // accumulation
        self.tried.append((tpu.name, rows, training.remat))
        state = 16 * config.model.n_params // mesh.fsdp
        row = config.model.n_params / 16e9 * self.row_gib * GIB * (0.1 if training.remat == "full" else 1)
        peak, available = int(state + rows * row), tpu.chip.hbm_bytes
        # larger slices waste time
        seconds = 1e-18 * 6 * config.model.n_params * training.batch_size * 2048 / chips**0.5
        return Plan(
            topology=tpu.name,
            slices=1,
            mesh=vars(mesh),
            remat=training.remat,
            gradient_accumulation_steps=accumulation,
            rows_per_shard=rows,
            tokens=1,
            model_flops=1.0,
            peak_flops=1.0,
            compile_seconds=0.0,
            memory=Memory(0, 0, 0, peak if peak <= available else None, peak, available),
            steps=training.steps,
            operations=[Operation("step", "matmul", "", 1, seconds, seconds)],
            parameters=[],
        )


@pytest.fixture
def compiled(monkeypatch):
    compiler = Compiler()
    monkeypatch.setattr("codegen_jax.planning.survey.make_plan", compiler)
    return compiler


def configs(*names):
    return {name: load_config(shipped_config(name), []) for name in names}


def test_the_smallest_slice_that_fits_comes_first_then_larger_ones_up_to_256_chips(compiled):
    lines = []
    entries = survey(configs("16b_nl"), ["v4", "v5e"], lines.append)
    # 240 GiB of state: v4-16 has 246 GiB, but not for activations besides; v5e-16 has 252 GiB
    assert [(entry.kind, entry.chips) for entry in entries] == [
        ("v4", 16),
        ("v4", 64),
        ("v4", 256),
        ("v5e", 32),
        ("v5e", 128),
        ("v5e", 256),
    ]
    assert lines[:2] == ["16b_nl on v4-8: does not fit", "16b_nl on v4-16: does not fit"]
    assert "v4-8" not in [name for name, *_ in compiled.tried]  # too small for the parameters alone
    assert [remarks(entry, entries) for entry in entries[:3]] == [["smallest that fits", "least chip-hours"], [], []]


def test_micro_batches_are_as_few_as_allow_the_least_recomputation(compiled):
    entries = survey(configs("350m_nl"), ["v4"])
    assert {entry.plan.remat for entry in entries} == {"dots"}
    assert [(entry.chips, entry.plan.rows_per_shard) for entry in entries] == [(4, 16), (16, 16), (64, 4), (256, 1)]


def test_if_that_does_not_fit_a_micro_batch_has_one_row_per_chip_and_then_full_remat(compiled):
    compiled.row_gib = 1000  # 22 GiB for a row of 350M, 2.2 GiB with full remat
    survey(configs("350m_nl"), ["v5e"])
    assert [tried[1:] for tried in compiled.tried if tried[0] == "v5e-16"] == [(8, "dots"), (1, "dots"), (1, "full")]
    compiled.row_gib = 10
    compiled.tried.clear()
    survey(configs("16b_nl"), ["v5e"])
    # where `auto` already recomputes all, nothing is tried twice
    assert len(compiled.tried) == len(set(compiled.tried))


def test_fsdp_is_as_on_256_chips(compiled):
    shapes = {e.chips: (e.plan.mesh["data"], e.plan.mesh["fsdp"]) for e in survey(configs("16b_nl"), ["v4"])}
    assert shapes == {16: (1, 16), 64: (1, 64), 256: (4, 64)}


def test_table_json_and_plot_agree(compiled, tmp_path):
    entries = survey(configs("350m_nl", "2b_nl"), ["v4", "v6e"])
    rows = table(entries, price=2.0).splitlines()
    values = json.loads(json.dumps(to_dicts(entries, price=2.0)))
    assert len(rows) == 1 + len(entries) == 1 + len(values)
    for row, value in zip(rows[1:], values):
        assert row.startswith(value["config"])
        assert all(word in row for word in (value["topology"], value["remat"], *value["remarks"]))
        assert f" {value['run']['chip_hours']:,.0f} " in row and value["run"]["cost"] == 2 * value["run"]["chip_hours"]
    plot(entries, tmp_path / "survey.png")
    assert (tmp_path / "survey.png").read_bytes().startswith(b"\x89PNG")


def test_an_unknown_kind_is_refused():
    with pytest.raises(UserError, match=r"all: kinds of TPU are v4, v5p, v5e, v6e, got v3$"):
        survey(configs("350m_nl"), ["v3"])


def test_a_run_of_epochs_or_with_a_tensor_axis_or_one_that_fits_nowhere_is_refused(compiled):
    config = configs("16b_nl")["16b_nl"]
    with pytest.raises(UserError, match=r"^training.epochs: give --training.epochs null --training.steps N"):
        survey({"run": replace(config, training=replace(config.training, epochs=1.0))}, ["v4"])
    with pytest.raises(UserError, match=r"^mesh.tensor: must be 1 with --all, got 2"):
        survey({"run": replace(config, mesh=MeshConfig(1, -1, 2))}, ["v4"])
    huge = replace(config, model=replace(config.model, n_layer=340))
    with pytest.raises(UserError, match=r"all: no slice of up to 256 chips is large enough"):
        survey({"run": huge}, ["v5e"])


def test_slices_that_do_not_divide_the_batch_or_the_model_are_left_out_with_the_reason(compiled):
    config, lines = configs("350m_nl")["350m_nl"], []
    small = replace(config, training=replace(config.training, batch_size=24))
    entries = survey({"run": small}, ["v4"], lines.append)
    assert [entry.chips for entry in entries] == [4]
    assert "run on v4-64: left out, 32 chips do not divide training.batch_size 24" in lines
    odd = replace(config, model=replace(config.model, n_embd=1000, n_head=10, head_dim=100))
    assert all(e.plan.mesh["fsdp"] <= 8 for e in survey({"run": odd}, ["v4"], lines.append))
    assert any("does not divide model.n_embd" in line for line in lines)


@pytest.mark.parametrize(
    ("mesh", "fsdp"),
    [((4, -1), {16: 16, 64: 64, 256: 64}), ((-1, 32), {64: 32}), ((3, -1), {64: 64}), ((999, 1), {4: 1})],
)
def test_any_mesh_of_the_config_gives_one_that_divides_the_slice(compiled, mesh, fsdp):
    config = replace(configs("350m_nl")["350m_nl"], mesh=MeshConfig(*mesh, 1))
    found = {entry.chips: entry.plan.mesh["fsdp"] for entry in survey({"run": config}, ["v4"])}
    assert {chips: found[chips] for chips in fsdp} == fsdp


def test_an_adapter_may_fit_where_the_state_of_all_weights_would_not(compiled):
    config = configs("16b_nl")["16b_nl"]
    model = replace(config.model, embedding_bias=False)
    adapted = replace(config, init_from="base", adapter=AdapterConfig(rank=8), model=model)
    survey({"run": adapted}, ["v5e"])
    assert compiled.tried[0][0] == "v5e-1"


def test_without_a_config_all_of_the_papers_sizes_are_planned(compiled, capsys):
    main(["plan", "--all", "v4", "--json"])
    found = [entry["config"] for entry in json.loads(capsys.readouterr().out)]
    assert list(dict.fromkeys(found)) == ["350m_nl", "2b_nl", "6b_nl", "16b_nl"]
