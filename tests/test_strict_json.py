"""JSON that every parser can read: a strict parser accepts it and gets the expected values."""

import json
import math

import numpy as np
import pytest

from codegen_jax.strict_json import dumps, loads


def strictly(text):
    """Parse JSON by the standard; Python's own parser also accepts NaN and Infinity."""
    return json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, float(np.float32("nan"))])
def test_a_non_finite_number_becomes_null_at_any_depth(value):
    nested = {"loss": value, "tokens": [1, (value, 2.5)], "top": [{"3": value, "4": -0.5}], "text": "NaN", "on": True}
    expected = {"loss": None, "tokens": [1, [None, 2.5]], "top": [{"3": None, "4": -0.5}], "text": "NaN", "on": True}
    assert strictly(dumps(nested)) == expected
    assert strictly(dumps(nested, indent=2)) == expected
    assert strictly(dumps(value)) is None


def test_json_written_by_older_versions_is_read():
    assert loads('{"a": NaN, "b": [Infinity, -Infinity, 1.5], "c": "NaN"}') == {
        "a": None,
        "b": [None, None, 1.5],
        "c": "NaN",
    }
