"""How far a mean over problems may be from what it would be of all problems of their kind: the bootstrap.

A benchmark's problems are a draw from many that might have been written. Draw as many from them, with replacement, and
take the mean; 95 % of such means lie within the interval (Efron & Tibshirani, An Introduction to the Bootstrap, 1993,
chapter 13). It does not say what other samples of the same problems would give.
"""

from collections.abc import Mapping

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95
DIGITS = 6  # kept, so that a sum's last bits, which machines may round otherwise, are not in a report


def mean_interval(values: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of a mean over problems: the same numbers each time, by a seed of its own.

    Args:
        values: [P], one per problem, such as its pass@k.

    >>> mean_interval(np.array([0.0, 1.0] * 82))
    (0.420732, 0.579268)
    """
    problems = len(values)
    drawn_RP = np.random.default_rng(0).integers(0, problems, (RESAMPLES, problems))
    ends = np.quantile(values[drawn_RP].mean(axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    low, high = np.round(ends, DIGITS).tolist()
    return low, high


def paired_difference(first: Mapping[str, float], second: Mapping[str, float]) -> tuple[float, tuple[float, float]]:
    """The mean of second - first over the problems that both have, and its 95 % interval.

    A draw takes both values of a problem, so what makes a problem hard for both cancels: the interval is narrower than
    those of the two means would suggest.

    Args:
        first: by task_id, such as pass@1; at least one task_id is in `second`, too.
    """
    differences = np.array([second[task_id] - first[task_id] for task_id in first if task_id in second])
    return float(differences.mean()), mean_interval(differences)
