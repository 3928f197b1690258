"""A row holds ids, which of them are trained and where documents start, for NumPy and JAX alike."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codegen_jax.data.rows import PADDING, ids_of, make_row, starts_of, targets_of


@pytest.mark.parametrize("library", [np, jnp])
@settings(deadline=None, derandomize=True, database=None)
@given(st.lists(st.tuples(st.integers(0, 2**30 - 1), st.booleans(), st.booleans()), min_size=1))
def test_what_is_put_into_a_row_comes_back(library, values):
    ids, trained, starts = map(np.array, zip(*values))
    row = library.asarray(make_row(ids, trained, starts))
    assert row.dtype == ids_of(row).dtype == targets_of(row).dtype == np.int32
    np.testing.assert_array_equal(ids_of(row), ids)
    np.testing.assert_array_equal(starts_of(row), starts)
    np.testing.assert_array_equal(targets_of(row), np.where(trained, ids, -1))


def test_ids_are_a_row_and_padding_is_not_trained():
    ids = np.array([0, 5, 51199], np.int32)
    assert targets_of(ids).tolist() == ids_of(ids).tolist() == ids.tolist() and not starts_of(ids).any()
    padding = np.array([PADDING], np.int32)
    assert (ids_of(padding), targets_of(padding), starts_of(padding)) == (0, -1, False)
