import jax

from codegen_jax.config import MeshConfig
from codegen_jax.planning.slices import parse_slice, slice_devices
from codegen_jax.sharding import make_mesh
from codegen_jax.training.resolve import resolve, resolved_config
from tests.runs import tiny_run


def test_what_a_config_leaves_to_the_devices_is_settled():
    config = tiny_run(
        mesh=MeshConfig(2, -1, 1), training={"gradient_accumulation_steps": 2}, data={"sequence_length": 128}
    )
    assert config.training.remat == config.model.attention == "auto"
    here = resolve(config, make_mesh(config.mesh))
    assert (here.training.remat, here.model.attention, here.rows_per_shard) == ("dots", "xla", 1)
    there = resolve(config, make_mesh(config.mesh, slice_devices(parse_slice("v4-16"))))
    assert (there.training.remat, there.model.attention, there.rows_per_shard) == ("dots", "splash", 1)
    written = resolved_config(config)
    assert written.mesh == MeshConfig(2, 4, 1) and written.training.remat == "dots"
    assert resolve(written, make_mesh(written.mesh)) == here


def test_what_a_config_names_stays():
    config = tiny_run(training={"remat": "attention"}, model={"attention": "splash"}, mesh=MeshConfig(1, 1, 1))
    run = resolve(config, make_mesh(config.mesh, jax.devices()[:1]))
    assert (run.training.remat, run.model.attention, run.rows_per_shard) == ("attention", "splash", 16)
