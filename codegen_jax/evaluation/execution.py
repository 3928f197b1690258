"""Judge many programs with parallel workers; programs that time out are run once more, with nothing else running."""

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
from codegen_jax.evaluation.worker import CPU_SECONDS, PRINTED_CPU_SECONDS, Reference, Worker

log = logging.getLogger(__name__)

SOLUTION_FACTOR = 10  # CPU limit as a multiple of the CPU time of the problem's own solution
DESCRIPTORS = 16  # per worker, at most
PROBLEMS_CHECKED = 5  # number of problems whose solutions are tried before a run
PROBLEM_REMEDY = "if the problem is your own, fix its solution or tests, or remove it"


class Judges:
    """Workers that judge programs in the background as they are submitted.

    A program that times out runs again at the end, with nothing else running, before the timeout counts.

    Args:
        layer: the sandbox layer.
        workers: number of programs judged in parallel.
        timeout: CPU seconds per program; None: 3, or 20 if the program's printed output is compared. When a program
            that timed out runs again, None allows 10 times what its problem's own solution needs, but at least 3.
    """

    def __init__(self, layer: Layer, workers: int, timeout: float | None):
        _allow_descriptors(workers)
        self.layer, self.timeout = layer, timeout
        self.waiting, self.done = queue.SimpleQueue[Any](), queue.SimpleQueue[Any]()
        self.one_process_only: set[str] = set()
        self.outstanding, self.timed_out = 0, list[tuple[Any, Reference, str]]()
        self.stopped = threading.Event()
        self.threads = [threading.Thread(target=self._work, daemon=True) for _ in range(workers)]
        for thread in self.threads:
            thread.start()

    def submit(self, key: Any, problem: Reference, program: str) -> None:
        """Queue a program to be judged; its verdict is returned with `key`."""
        self.outstanding += 1
        self.waiting.put((key, problem, program))

    def verdicts(self) -> Iterator[tuple[Any, Verdict]]:
        """The verdicts available so far, in any order."""
        while not self.done.empty():
            yield from self._received(self.done.get())

    def finish(self) -> Iterator[tuple[Any, Verdict]]:
        """All remaining verdicts, as they arrive."""
        while self.outstanding:
            yield from self._received(self.done.get())
        worker, limits = Worker(self.layer, self.one_process_only), dict[str, int]()
        try:
            for key, problem, program in self.timed_out:
                limit = self._limit(problem)
                if not self.timeout and isinstance(problem, Problem):
                    if problem.task_id not in limits:
                        limits[problem.task_id] = _limit_of(problem, worker)
                    limit = limits[problem.task_id]
                yield key, worker.judge(problem, program, limit)
        finally:
            worker.close()

    def _limit(self, problem: Reference) -> int:
        return math.ceil(self.timeout or (PRINTED_CPU_SECONDS if isinstance(problem, Printed) else CPU_SECONDS))

    def _received(self, found: Any) -> Iterator[tuple[Any, Verdict]]:
        if isinstance(found, BaseException):
            raise found
        program, verdict = found
        self.outstanding -= 1
        if verdict.outcome == "timeout":
            self.timed_out.append(program)
        else:
            yield program[0], verdict

    def _work(self) -> None:
        worker = Worker(self.layer, self.one_process_only)
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
        programs: a number, task_id and source per program.
        layer: the sandbox layer, which is first checked with solutions and wrong programs.
        workers, timeout: see `Judges`.

    Raises:
        UserError: if the sandbox does not judge correctly on this machine.
    """
    check_sandbox([problems[task_id] for task_id in dict.fromkeys(task_id for _, task_id, _ in programs)], layer)
    yield from judge_all(problems, programs, layer, workers, timeout)


def judge_all(
    references: Mapping[str, Reference],
    programs: Sequence[tuple[int, str, str]],
    layer: Layer,
    workers: int,
    timeout: float | None,
) -> Iterator[tuple[int, Verdict]]:
    """Like `judge`, but for any kind of reference, and without checking the layer first."""
    with Judges(layer, workers, timeout) as judges:
        for number, task_id, program in programs:
            judges.submit(number, references[task_id], program)
        yield from judges.finish()


def _allow_descriptors(workers: int) -> None:
    """Raise the open-file limit, often 1,024, to what the workers need, as far as the hard limit allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 256 + DESCRIPTORS * workers
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def check_sandbox(problems: Sequence[Problem], layer: Layer) -> None:
    """Raise `UserError` unless the first five problems' solutions pass and functions that return None do not."""
    worker = Worker(layer)
    try:
        for problem in problems[:PROBLEMS_CHECKED]:
            wrong = "".join(f"def {name}(*args, **kwargs):\n    return None\n\n" for name in problem.entry_points)
            correct, incorrect = (
                worker.judge(problem, source, 10 * CPU_SECONDS) for source in (problem.prompt + problem.solution, wrong)
            )
            require(
                correct.outcome == "passed",
                f"sandbox: {layer.name}: the solution of {problem.task_id} does not pass ({correct.outcome}: "
                f"{correct.error}); {PROBLEM_REMEDY}",
            )
            require(
                incorrect.outcome != "passed",
                f"sandbox: {layer.name}: a wrong solution of {problem.task_id} passes; {PROBLEM_REMEDY}",
            )
    finally:
        worker.close()


def check_printing(layer: Layer) -> None:
    """Raise `UserError` unless a program that prints the expected value passes and one that does not fails."""
    printed = Printed(Case("0", 0, (), [1, 2.5], 1), "official")
    worker = Worker(layer)
    try:
        for items, outcome in (("1, 2.5", "passed"), ("1, 3.5", "failed")):
            verdict = worker.judge(printed, f"import numpy as np\nprint(np.array([{items}]))", 10 * CPU_SECONDS)
            require(
                verdict.outcome == outcome,
                f"sandbox: {layer.name}: a program that should be judged as {outcome} was not ({verdict.outcome}: "
                f"{verdict.error})",
            )
    finally:
        worker.close()


def _limit_of(problem: Problem, worker: Worker) -> int:
    """The limit in CPU seconds for a problem's programs, measured on its own solution."""
    verdict = worker.judge(problem, problem.prompt + problem.solution, 20 * CPU_SECONDS)
    if verdict.outcome != "passed":
        log.warning(f"{problem.task_id}: the benchmark's own solution does not pass ({verdict.error})")
    return max(CPU_SECONDS, math.ceil(SOLUTION_FACTOR * verdict.cpu_seconds))
