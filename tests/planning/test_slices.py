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
def test_a_name_says_chips_and_network(name, shape, wrap):
    tpu = parse_slice(name)
    cores = 1 if name.startswith(("v5e", "v6e")) else 2
    assert (tpu.shape, tpu.wrap) == (shape, wrap) and math.prod(shape) * cores == int(name.split("-")[1])


@pytest.mark.parametrize("name", ["v4-12", "v4-4", "v4-8192", "v5e-512", "v3-8", "v4", "512", "v4-x"])
def test_sizes_that_do_not_exist_are_refused(name):
    with pytest.raises(UserError, match="topology: "):
        parse_slice(name)
