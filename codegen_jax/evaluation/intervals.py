"""Bootstrap confidence intervals for a mean over problems.

A benchmark's problems are a sample of the many that might have been written. Draw the same number again, with
replacement, and take the mean, 2,000 times; 95% of these means lie within the interval (Efron & Tibshirani, An
Introduction to the Bootstrap, 1993, chapter 13). The interval does not cover the variation between samples of the same
problems.
"""

from collections.abc import Mapping

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95
DIGITS = 6  # rounded, since the last bits of a sum may differ between machines


def mean_interval(values: np.ndarray) -> tuple[float, float]:
    """The 95% interval of a mean over problems. Deterministic: it uses its own fixed seed.

    Args:
        values: [P], one value per problem, such as its pass@k.

    >>> mean_interval(np.array([0.0, 1.0] * 82))
    (0.420732, 0.579268)
    """
    problems = len(values)
    drawn_RP = np.random.default_rng(0).integers(0, problems, (RESAMPLES, problems))
    ends = np.quantile(values[drawn_RP].mean(axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    low, high = np.round(ends, DIGITS).tolist()
    return low, high


def paired_difference(first: Mapping[str, float], second: Mapping[str, float]) -> tuple[float, tuple[float, float]]:
    """The mean of second - first over the problems that both have, and its 95% interval.

    Each draw takes both values of a problem, so difficulty that the two share cancels: the interval is narrower than
    the intervals of the two means would suggest.

    Args:
        first: values such as pass@1, by task_id; at least one task_id must also be in `second`.
        second: values of the other run, by task_id.
    """
    differences = np.array([second[task_id] - first[task_id] for task_id in first if task_id in second])
    return float(differences.mean()), mean_interval(differences)
