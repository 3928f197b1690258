"""Results counted per problem, and the statistics from the counts: pass@k with intervals, and pass rates."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from codegen_jax.evaluation.intervals import mean_interval
from codegen_jax.evaluation.judged import Judged
from codegen_jax.evaluation.pass_at_k import pass_at_k, problems_pass_at_k


class Tally(NamedTuple):
    """The number of samples and of passed samples per problem: three lists in problem order."""

    task_ids: list[str]
    samples: list[int]
    passed: list[int]

    @property
    def rates(self) -> dict[str, float]:
        """The share of samples that passed, i.e. pass@1, by task_id."""
        return {task_id: c / n for task_id, n, c in zip(*self)}

    def pass_at_k(self, ks: Sequence[int]) -> dict[str, float]:
        """pass@k, with k as a string; omits k for which a problem has too few samples."""
        found = {k: pass_at_k(self.samples, self.passed, k) for k in ks}
        return {str(k): estimate for k, estimate in found.items() if estimate is not None}

    def intervals(self, ks: Sequence[int]) -> dict[str, list[float]]:
        """The 95% interval, [low, high], of each value that `pass_at_k` returns."""
        enough = [k for k in ks if k <= min(self.samples)]
        return {str(k): list(mean_interval(problems_pass_at_k(self.samples, self.passed, k))) for k in enough}


def tally(judged: Sequence[Judged]) -> Tally:
    """Count results, at least one; problems without samples are not included."""
    samples = Counter(one.task_id for one in judged)
    passed = Counter(one.task_id for one in judged if one.outcome == "passed")
    return Tally(list(samples), list(samples.values()), [passed[task_id] for task_id in samples])
