"""Fingerprints of arrays detect every changed bit and do not depend on sharding."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from codegen_jax.weights import fingerprint
from codegen_jax.weights.base import chunk_indices
from codegen_jax.weights.fingerprint import Regions, fingerprints, region_fingerprint


@pytest.mark.parametrize("dtype", ["float32", "float16", ml_dtypes.bfloat16])
@pytest.mark.parametrize("shape", [(7,), (5, 9), (3, 8, 2, 5)])
def test_fingerprints_of_regions_add_up_to_that_of_the_array(shape, dtype, monkeypatch):
    monkeypatch.setattr(fingerprint, "BLOCK", 8)
    x = np.random.default_rng(0).normal(size=shape).astype(dtype)
    whole = fingerprints({"x": jnp.asarray(x)})["x"]
    for chunk in (shape, (1,) * len(shape), tuple(-(-size // 2) for size in shape)):
        parts = [region_fingerprint(x[index], tuple(s.start for s in index)) for index in chunk_indices(shape, chunk)]
        assert sum(parts) % 2**32 == whole
    # the same values in float32 have the same fingerprint
    assert fingerprints({"x": jnp.asarray(x, jnp.float32)})["x"] == whole


def test_fingerprints_are_keyed_by_path_and_cover_integers():
    state = {"params": {"blocks": {"query": jnp.ones(3)}}, "step": jnp.int32(7)}
    found = fingerprints(state)
    assert set(found) == {"params.blocks.query", "step"}
    assert fingerprints(state | {"step": jnp.int32(8)})["step"] != found["step"]


def test_every_single_bit_change_is_detected():
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    whole = region_fingerprint(x, (0, 0))
    for place in np.ndindex(2, 3):
        for bit in range(32):
            changed = x.copy()
            changed.view(np.uint32)[place] ^= np.uint32(1 << bit)
            assert region_fingerprint(changed, (0, 0)) != whole


def test_fingerprints_do_not_depend_on_the_sharding():
    x = jax.random.normal(jax.random.key(0), (8, 16))
    mesh = jax.make_mesh((2, 4), ("a", "b"))
    for spec in (jax.P("a", "b"), jax.P("b"), jax.P(None, ("a", "b"))):
        assert fingerprints([jax.device_put(x, jax.NamedSharding(mesh, spec))]) == fingerprints([x])


def test_a_sample_read_before_does_not_keep_an_array_from_being_checked():
    array = np.random.default_rng(0).standard_normal((4, 8, 6)).astype(np.float32)
    regions = Regions(array.shape)
    assert regions.add(array[3:, :2, :2], (3, 0, 0)) is None
    found = [regions.add(array[layer : layer + 1], (layer, 0, 0)) for layer in range(4)]
    assert found == [None, None, None, region_fingerprint(array, (0, 0, 0))]
