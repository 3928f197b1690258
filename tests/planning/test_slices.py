"""TPU slice names, aliases and shapes."""

import math

import pytest

from codegen_jax.errors import UserError
from codegen_jax.planning.slices import parse_slice


@pytest.mark.parametrize(
    ("name", "shape", "wrap"),
    [
        ("v4-8", (2, 2, 1), (False,) * 3),
        ("v4-32", (2, 2, 4), (False,) * 3),
        ("v4-512", (4, 8, 8), (True,) * 3),
        ("v4-4096", (8, 16, 16), (True,) * 3),
        ("v5p-128", (4, 4, 4), (True,) * 3),
        ("v5e-8", (2, 4), (False, False)),
        ("v5e-256", (16, 16), (True, True)),
        ("v6e-1", (1, 1), (False, False)),
    ],
)
def test_a_name_determines_shape_and_wraparound(name, shape, wrap):
    tpu = parse_slice(name)
    cores = 1 if name.startswith(("v5e", "v6e")) else 2
    assert (tpu.shape, tpu.wrap) == (shape, wrap) and math.prod(shape) * cores == int(name.split("-")[1])


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("v5litepod-16", "v5e-16"),
        ("v5lite-16", "v5e-16"),
        ("v5litepod_16", "v5e-16"),
        ("V4-8", "v4-8"),
        ("TPU-v6e-8", "v6e-8"),
        ("v5e-4x4", "v5e-16"),
        ("v5e:2x2x1", "v5e-4"),
        ("v6e-1x1", "v6e-1"),
        ("v4-2x2x1", "v4-8"),
        ("v5p:4x4x4", "v5p-128"),
        ("v4:4x4x2", "v4-64"),
        ("tpu-v4-podslice:2x2x2", "v4-16"),
        ("tpu-v5p-slice:2x2x1", "v5p-8"),
        ("tpu-v5-lite-podslice-4x4", "v5e-16"),
        ("tpu-v6e-slice:16x16", "v6e-256"),
    ],
)
def test_names_used_by_gcloud_and_gke_are_aliases(name, canonical):
    assert parse_slice(name) == parse_slice(canonical) and parse_slice(name).name == canonical


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("v4-24", "v4-16 (2x2x2) or v4-32 (2x2x4)"),
        ("v4-12", "v4-8 (2x2x1) or v4-16 (2x2x2)"),
        ("v4-4", "v4-8 (2x2x1)"),
        ("v4-8192", "v4-4096 (8x16x16)"),
        ("v5e-512", "v5e-256 (16x16)"),
        ("v6e-2", "v6e-1 (1x1) or v6e-4 (2x2)"),
        ("v5litepod-0", "v5e-1 (1x1)"),
        ("v5e-2x8", "v5e-16 (4x4)"),
        ("v4-2x2x8", "v4-64 (2x4x4)"),
    ],
)
def test_a_nonexistent_size_is_rejected_with_the_nearest_ones(name, nearest):
    with pytest.raises(UserError) as error:
        parse_slice(name)
    assert str(error.value) == f"topology: {name} does not exist; use {nearest}"


@pytest.mark.parametrize(
    "name", ["v3-8", "v5-16", "v4", "512", "v4-x", "tpu-v4-podslice-8", "4x4", "v5e-4x", "v4-16-2"]
)
def test_a_name_without_a_known_kind_or_a_size_is_rejected(name):
    kinds = "v4, v5p, v5e, v6e, v5litepod, v5lite, and with a shape also v4-podslice"
    with pytest.raises(UserError, match=f"^topology: must be KIND-NUMBER .*, got '{name}'; kinds are {kinds}"):
        parse_slice(name)


@pytest.mark.parametrize(
    ("kind", "shapes"),
    [
        ("v5e", "1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16"),
        ("v6e", "1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16"),
        ("v5p", "2x2x1 2x2x2 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16"),
    ],
)
def test_the_shapes_in_googles_tables_are_accepted_unchanged(kind, shapes):
    for shape in shapes.split():
        assert "x".join(map(str, parse_slice(f"{kind}-{shape}").shape)) == shape
