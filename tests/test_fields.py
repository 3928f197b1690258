"""Type and range checks of config fields, and suggested names."""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pytest

from codegen_jax.config import CodeGenConfig, MeshConfig, OptimizerConfig
from codegen_jax.errors import UserError
from codegen_jax.fields import check_type, did_you_mean, in_words
from codegen_jax.inference.request import Options


@pytest.mark.parametrize(
    ("hint", "right", "wrong", "words"),
    [
        (int, [3, np.int64(3)], [3.0, True, "3", None], "a whole number"),
        (float, [3, 0.5, np.float32(1)], ["1", True, None], "a number"),
        (bool, [True], [1, "true"], "true or false"),
        (str, ["x"], [1, b"x"], "text"),
        (int | None, [3, None], ["3"], "a whole number"),
        (Literal["a", "b"] | None, ["a", None], ["c", 1], "one of a, b"),
        (Sequence[str], [["x"], ("x", "y"), []], ["xy", [1]], "a list of text"),
        (int | Sequence[int], [1, [1, 2]], ["1", ["1"]], "a whole number or a list of whole numbers"),
        (list[list[int]], [[[1, 2]]], [[1, 2], "x"], "a list of lists of whole numbers"),
        (MeshConfig | None, [MeshConfig(), None], [4], "a MeshConfig"),
    ],
)
def test_values_of_the_wrong_type_are_refused_with_the_expected_type_in_words(hint, right, wrong, words):
    assert in_words(hint) == words
    for value in right:
        check_type("x", value, hint)
    for value in wrong:
        with pytest.raises(UserError) as error:
            check_type("x", value, hint)
        assert str(error.value) == f"x: must be {words}, got {value!r}"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan")])
def test_nonfinite_fields_are_refused_by_name(value):
    with pytest.raises(UserError, match=rf"^optimizer.clip_norm: must be finite, got {value}$"):
        OptimizerConfig(1e-3, 1e-4, 2, 4, clip_norm=value)
    with pytest.raises(UserError, match=rf"^model.layer_norm_epsilon: must be finite, got {value}$"):
        CodeGenConfig(2, 32, 4, 4, layer_norm_epsilon=value)
    with pytest.raises(UserError, match=rf"^temperature: must be finite, got {value}$"):
        Options(temperature=value)


def test_configs_created_in_python_are_checked_by_field():
    with pytest.raises(UserError, match=r"model.n_layer: must be a whole number, got 2.5"):
        CodeGenConfig(2.5, 32, 4, 4)
    with pytest.raises(UserError, match=r"mesh.data: must be a whole number, got '4'"):
        MeshConfig("4")


def test_only_similar_names_are_suggested():
    assert did_you_mean("temprature", ["temperature", "top_k"]) == "; did you mean temperature?"
    assert did_you_mean("colour", ["temperature", "top_k"]) == ""
