"""Meshes are made from the devices; errors name a dimension that the mesh does not divide."""

import jax
import pytest

from codegen_jax.config import MeshConfig
from codegen_jax.errors import UserError
from codegen_jax.sharding import check_fit, make_mesh
from tests.runs import tiny_run


@pytest.mark.parametrize(
    ("axes", "shape"),
    [((1, -1, 1), (1, 8, 1)), ((2, -1, 2), (2, 2, 2)), ((-1, 4, 1), (2, 4, 1)), ((1, 4, 2), (1, 4, 2))],
)
def test_one_axis_may_use_the_remaining_devices(axes, shape):
    assert tuple(make_mesh(MeshConfig(*axes)).shape.values()) == shape


@pytest.mark.parametrize("axes", [(1, 4, 1), (3, -1, 1), (4, 4, 1), (16, -1, 1)])
def test_mesh_that_does_not_match_the_devices_is_refused(axes):
    with pytest.raises(UserError, match=r"mesh: data \d+ x fsdp -?\d+ x tensor 1 does not match 8 device"):
        make_mesh(MeshConfig(*axes))


@pytest.mark.parametrize(
    ("axes", "changes", "message"),
    [
        ((1, 1, 8), {}, r"mesh.tensor: 8 does not divide model.n_head = 4"),
        ((1, 8, 1), {"model": {"n_embd": 36, "n_head": 6}}, r"mesh.fsdp: 8 does not divide model.n_embd = 36"),
        ((1, 2, 4), {"model": {"vocab_size": 514}}, r"mesh.tensor: 4 does not divide model.vocab_size = 514"),
        ((1, 8, 1), {"training": {"batch_size": 12}}, r"a micro-batch of 12 rows .* = 8"),
        ((1, 8, 1), {"training": {"gradient_accumulation_steps": 4}}, r"a micro-batch of 4 rows"),
    ],
)
def test_error_names_the_dimension_that_the_mesh_does_not_divide(axes, changes, message):
    config = tiny_run(mesh=MeshConfig(*axes), **changes)
    with pytest.raises(UserError, match=message):
        check_fit(make_mesh(config.mesh), config.model, config.training)


def test_mesh_uses_each_device_once():
    devices = make_mesh(MeshConfig(2, 2, 2)).devices.ravel().tolist()
    assert sorted(d.id for d in devices) == [d.id for d in jax.devices()]
