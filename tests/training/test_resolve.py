"""Settings with the value auto are resolved for the devices; explicit ones are unchanged."""

import jax

from codegen_jax.config import MeshConfig
from codegen_jax.planning.slices import parse_slice, slice_devices
from codegen_jax.sharding import make_mesh
from codegen_jax.training.resolve import resolve, resolved_config
from tests.runs import tiny_run


def test_auto_settings_are_resolved_for_the_devices():
    config = tiny_run(
        mesh=MeshConfig(2, -1, 1), training={"gradient_accumulation_steps": 2}, data={"sequence_length": 128}
    )
    assert config.training.remat == config.model.attention == "auto"
    on_cpu = resolve(config, make_mesh(config.mesh))
    assert (on_cpu.training.remat, on_cpu.model.attention, on_cpu.rows_per_shard) == ("dots", "xla", 1)
    on_tpu = resolve(config, make_mesh(config.mesh, slice_devices(parse_slice("v4-16"))))
    assert (on_tpu.training.remat, on_tpu.model.attention, on_tpu.rows_per_shard) == ("dots", "pallas", 1)
    resolved = resolved_config(config)
    assert resolved.mesh == MeshConfig(2, 4, 1) and resolved.training.remat == "dots"
    assert resolve(resolved, make_mesh(resolved.mesh)) == on_cpu
    epochs = resolved_config(tiny_run(training={"epochs": 2.0}))  # how many steps these are depends on the data
    assert (epochs.training.epochs, epochs.training.steps) == (2.0, 6)


def test_explicit_settings_are_unchanged():
    config = tiny_run(training={"remat": "attention"}, model={"attention": "splash"}, mesh=MeshConfig(1, 1, 1))
    run = resolve(config, make_mesh(config.mesh, jax.devices()[:1]))
    assert (run.training.remat, run.model.attention, run.rows_per_shard) == ("attention", "splash", 16)
