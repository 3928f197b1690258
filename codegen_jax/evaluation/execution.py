"""Many programs judged, by workers beside one another, and what runs out of time once more alone."""

import logging
import math
import queue
import resource
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

from codegen_jax.errors import require
from codegen_jax.evaluation.mtpb.cases import Case
from codegen_jax.evaluation.mtpb.printed import Printed
from codegen_jax.evaluation.problems import Problem
from codegen_jax.evaluation.sandbox import Layer
from codegen_jax.evaluation.verdicts import Verdict
from codegen_jax.evaluation.worker import CPU_SECONDS, PRINTED_CPU_SECONDS, JudgedBy, Worker

log = logging.getLogger(__name__)

OF_SOLUTION = 10  # times what the problem's own solution needs
DESCRIPTORS = 16  # of a worker, at most
CHECKED = 5  # problems whose solutions are tried before a run
OWN_PROBLEM = "if the problem is of a file of yours, mend its solution or tests there, or leave it out"


class Judges:
    """Workers that judge programs as they come, beside what else this process does.

    What runs out of time runs again at the end, alone, before that counts.

    Args:
        layer: of sandboxes.
        workers: programs at a time.
        timeout: CPU seconds per program; None: 3, or 10 times what the problem's own solution needs; 20 where what a
            program prints is compared.
    """

    def __init__(self, layer: Layer, workers: int, timeout: float | None):
        _allow_descriptors(workers)
        self.layer, self.timeout = layer, timeout
        self.waiting, self.done = queue.SimpleQueue[Any](), queue.SimpleQueue[Any]()
        self.uncrossed: set[str] = set()
        self.outstanding, self.late = 0, list[tuple[Any, JudgedBy, str]]()
        self.stopped = threading.Event()
        self.threads = [threading.Thread(target=self._work, daemon=True) for _ in range(workers)]
        for thread in self.threads:
            thread.start()

    def submit(self, key: Any, problem: JudgedBy, program: str) -> None:
        """Have a program judged; its verdict comes with `key`."""
        self.outstanding += 1
        self.waiting.put((key, problem, program))

    def verdicts(self) -> Iterator[tuple[Any, Verdict]]:
        """Those that are there by now, in any order."""
        while not self.done.empty():
            yield from self._taken(self.done.get())

    def finish(self) -> Iterator[tuple[Any, Verdict]]:
        """All that are left, as they come."""
        while self.outstanding:
            yield from self._taken(self.done.get())
        worker, limits = Worker(self.layer, self.uncrossed), dict[str, int]()
        try:
            for key, problem, program in self.late:
                limit = self._limit(problem)
                if not self.timeout and isinstance(problem, Problem):
                    if problem.task_id not in limits:
                        limits[problem.task_id] = _limit_of(problem, worker)
                    limit = limits[problem.task_id]
                yield key, worker.judge(problem, program, limit)
        finally:
            worker.close()

    def _limit(self, problem: JudgedBy) -> int:
        return math.ceil(self.timeout or (PRINTED_CPU_SECONDS if isinstance(problem, Printed) else CPU_SECONDS))

    def _taken(self, found: Any) -> Iterator[tuple[Any, Verdict]]:
        if isinstance(found, BaseException):
            raise found
        program, verdict = found
        self.outstanding -= 1
        if verdict.outcome == "timeout":
            self.late.append(program)
        else:
            yield program[0], verdict

    def _work(self) -> None:
        worker = Worker(self.layer, self.uncrossed)
        try:
            while (program := self.waiting.get()) is not None and not self.stopped.is_set():
                self.done.put((program, worker.judge(program[1], program[2], self._limit(program[1]))))
        except BaseException as error:
            self.done.put(error)
        finally:
            worker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stopped.set()
        for _ in self.threads:
            self.waiting.put(None)
        for thread in self.threads:
            thread.join()


def judge(
    problems: Mapping[str, Problem],
    programs: Sequence[tuple[int, str, str]],
    layer: Layer,
    workers: int,
    timeout: float | None,
) -> Iterator[tuple[int, Verdict]]:
    """The verdict on each program, in any order.

    Args:
        problems: by task_id.
        programs: of each a number, its task_id and its source.
        layer: of sandboxes, which is tried on solutions and wrong programs first.
        workers, timeout: as of `Judges`.

    Raises:
        UserError: if the sandbox does not judge right here.
    """
    check_sandbox([problems[task_id] for task_id in dict.fromkeys(task_id for _, task_id, _ in programs)], layer)
    yield from judge_all(problems, programs, layer, workers, timeout)


def judge_all(
    judged: Mapping[str, JudgedBy],
    programs: Sequence[tuple[int, str, str]],
    layer: Layer,
    workers: int,
    timeout: float | None,
) -> Iterator[tuple[int, Verdict]]:
    """As `judge`, in a layer that has been tried before, and of all that is judged."""
    with Judges(layer, workers, timeout) as judges:
        for number, task_id, program in programs:
            judges.submit(number, judged[task_id], program)
        yield from judges.finish()


def _allow_descriptors(workers: int) -> None:
    """Raise the limit of open files, often 1024, to what the workers take, as far as the system lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 256 + DESCRIPTORS * workers
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def check_sandbox(problems: Sequence[Problem], layer: Layer) -> None:
    """Raise `UserError` unless the solutions of the first five pass here, and functions that return None do not."""
    worker = Worker(layer)
    try:
        for problem in problems[:CHECKED]:
            wrong = "".join(f"def {name}(*args, **kwargs):\n    return None\n\n" for name in problem.entry_points)
            right, nothing = (
                worker.judge(problem, source, 10 * CPU_SECONDS) for source in (problem.prompt + problem.solution, wrong)
            )
            require(
                right.outcome == "passed",
                f"sandbox: {layer.name}: the solution of {problem.task_id} does not pass in it ({right.outcome}: "
                f"{right.error}); {OWN_PROBLEM}",
            )
            require(
                nothing.outcome != "passed",
                f"sandbox: {layer.name}: a wrong solution of {problem.task_id} passes; {OWN_PROBLEM}",
            )
    finally:
        worker.close()


def check_printing(layer: Layer) -> None:
    """Raise `UserError` unless a program that prints what is expected passes here, and one that does not fails."""
    printed = Printed(Case("0", 0, (), [1, 2.5], 1), "official")
    worker = Worker(layer)
    try:
        for items, outcome in (("1, 2.5", "passed"), ("1, 3.5", "failed")):
            verdict = worker.judge(printed, f"import numpy as np\nprint(np.array([{items}]))", 10 * CPU_SECONDS)
            require(
                verdict.outcome == outcome,
                f"sandbox: {layer.name}: a program that must have {outcome} is judged otherwise in it "
                f"({verdict.outcome}: {verdict.error})",
            )
    finally:
        worker.close()


def _limit_of(problem: Problem, worker: Worker) -> int:
    """CPU seconds for a problem's programs."""
    verdict = worker.judge(problem, problem.prompt + problem.solution, 20 * CPU_SECONDS)
    if verdict.outcome != "passed":
        log.warning(f"{problem.task_id}: the benchmark's own solution does not pass ({verdict.error})")
    return max(CPU_SECONDS, math.ceil(OF_SOLUTION * verdict.cpu_seconds))
