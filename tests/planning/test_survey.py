"""Which slices a survey plans, with a compiler that only computes whether a run fits."""

import json
from dataclasses import replace

import pytest

from codegen_jax.cli import main
from codegen_jax.config import MeshConfig
from codegen_jax.config_file import load_config, shipped_config
from codegen_jax.errors import UserError
from codegen_jax.planning.plan import Memory, Plan
from codegen_jax.planning.schedule import Operation
from codegen_jax.planning.survey import remarks, survey
from codegen_jax.planning.survey_report import plot, table, to_dicts

GIB = 2**30


@pytest.fixture
def compiled(monkeypatch):
    """Replace the compiler: a row of 16B takes 10 GiB, 1 GiB with full remat; larger slices waste time."""
    tried = []

    def make_plan(config, tpu):
        training, mesh = config.training, config.mesh
        chips, accumulation = mesh.data * mesh.fsdp, training.gradient_accumulation_steps
        assert training.batch_size % (chips * accumulation) == 0
        rows = training.batch_size // chips // accumulation
        tried.append((tpu.name, rows, training.remat))
        state = 16 * config.model.n_params // mesh.fsdp
        row = config.model.n_params / 16e9 * (1 if training.remat == "full" else 10) * GIB
        peak = int(state + rows * row)
        available = tpu.chip.hbm_bytes
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

    monkeypatch.setattr("codegen_jax.planning.survey.make_plan", make_plan)
    return tried


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
    assert "16b_nl on v4-16: does not fit" in lines and "v4-8" not in " ".join(lines)
    assert [remarks(entry, entries) for entry in entries[:3]] == [["smallest that fits", "least chip-hours"], [], []]


def test_micro_batches_are_as_few_as_allow_the_least_recomputation(compiled):
    entries = survey(configs("350m_nl"), ["v4"])
    assert {entry.plan.remat for entry in entries} == {"dots"}
    assert [(entry.chips, entry.plan.rows_per_shard) for entry in entries] == [(4, 16), (16, 16), (64, 4), (256, 1)]


def test_if_that_does_not_fit_a_micro_batch_has_one_row_per_chip_and_then_full_remat(compiled):
    survey(configs("16b_nl"), ["v5e"])
    rows = [entry[1:] for entry in compiled if entry[0] == "v5e-32"]
    assert len(rows) == 2 and rows[0][0] > 1 and rows[1] == (1, "full")


def test_fsdp_is_as_on_256_chips(compiled):
    data = load_config(shipped_config("16b_nl"), []).mesh.data
    shapes = {e.chips: e.plan.mesh for e in survey(configs("16b_nl"), ["v4"])}
    assert shapes == {
        16: vars(MeshConfig(1, 16, 1)),
        64: vars(MeshConfig(1, 64, 1)),
        256: vars(MeshConfig(data, 256 // data, 1)),
    }


def test_table_json_and_plot_agree(compiled, tmp_path):
    entries = survey(configs("350m_nl", "2b_nl"), ["v4", "v6e"])
    rows = table(entries, price=2.0).splitlines()
    values = json.loads(json.dumps(to_dicts(entries, price=2.0)))
    assert len(rows) == 1 + len(entries) == 1 + len(values)
    for row, value in zip(rows[1:], values):
        assert (
            row.startswith(value["config"]) and value["topology"] in row and row.endswith(", ".join(value["remarks"]))
        )
        assert f" {value['run']['chip_hours']:,.0f} " in row and value["run"]["cost"] == 2 * value["run"]["chip_hours"]
    plot(entries, tmp_path / "survey.png")
    assert (tmp_path / "survey.png").read_bytes().startswith(b"\x89PNG")


def test_an_unknown_kind_is_refused():
    with pytest.raises(UserError, match=r"all: kinds of TPU are v4, v5p, v5e, v6e, got v3$"):
        survey(configs("350m_nl"), ["v3"])


def test_a_run_of_epochs_or_one_that_fits_nowhere_is_refused(compiled):
    config = configs("16b_nl")["16b_nl"]
    with pytest.raises(UserError, match=r"^training.epochs: give training.steps"):
        survey({"run": replace(config, training=replace(config.training, epochs=1.0))}, ["v4"])
    huge = replace(config, model=replace(config.model, n_layer=340))
    with pytest.raises(UserError, match=r"all: nothing fits on slices of up to 256 chips"):
        survey({"run": huge}, ["v5e"])


def test_slices_that_do_not_divide_the_batch_are_left_out(compiled):
    config = configs("350m_nl")["350m_nl"]
    entries = survey({"run": replace(config, training=replace(config.training, batch_size=24))}, ["v4"])
    assert [entry.chips for entry in entries] == [4]


def test_without_a_config_all_of_the_papers_sizes_are_planned(compiled, capsys):
    main(["plan", "--all", "v4", "--json"])
    found = [entry["config"] for entry in json.loads(capsys.readouterr().out)]
    assert list(dict.fromkeys(found)) == ["350m_nl", "2b_nl", "6b_nl", "16b_nl"]
