"""Programs run and judged: each in a process of the sandbox, its tests in another that it never enters.

A worker has two sandboxes, each with a warm interpreter (inside/__main__.py): one for the programs of one problem, and
one for tests. What a test calls crosses from one to the other as plain data (inside/values.py), through here. So a
program can end itself, print, or take its own process to pieces, and no test passes by it.
"""

import json
import logging
import math
import os
import queue
import re
import select
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from codegen_jax.errors import require
from codegen_jax.evaluation.inside.frames import LENGTH
from codegen_jax.evaluation.problems import Problem
from codegen_jax.evaluation.sandbox import Layer, Limits, Sandbox
from codegen_jax.evaluation.verdicts import Outcome, Verdict

log = logging.getLogger(__name__)

INSIDE = Path(__file__).parent / "inside"
CPU_SECONDS = 3  # of a program and of its tests, unless the problem's own solution needs a tenth of that
OF_SOLUTION = 10  # times what the problem's own solution needs
WALL = 10  # times the CPU limit: a program that sleeps ends by it, one that waits for a core does not
ANSWER_SECONDS = 10.0  # in which the interpreter itself answers
MEMORY_BYTES, OUTPUT_BYTES, MESSAGE_BYTES = 1 << 30, 1 << 20, 80 << 20
TRIES = 3  # of a program whose sandbox breaks
CHECKED = 5  # problems whose solutions are tried before a run
ADDRESS = re.compile(r"0x[0-9a-f]{6,}")


class Broken(Exception):
    """A sandbox that does not answer as it should; says nothing of the program."""


class Interpreter:
    """The warm interpreter of one sandbox."""

    def __init__(self, layer: Layer):
        self.sandbox = Sandbox(layer, INSIDE, Limits())
        self.received = bytearray()
        try:
            if self._next(time.monotonic() + ANSWER_SECONDS) is None:
                raise Broken("it does not start")
        except BaseException:
            self.sandbox.stop()
            raise

    def start(self, **task: Any) -> None:
        limits = {"memory_bytes": MEMORY_BYTES, "output_bytes": OUTPUT_BYTES}
        self.send(limits | task)

    def send(self, message: Any) -> None:
        content = json.dumps(message).encode()
        view = memoryview(LENGTH.pack(len(content)) + content)
        try:
            while view:
                view = view[self.sandbox.stdin.write(view) :]
        except OSError as error:
            raise Broken(str(error)) from error

    def answer(self, deadline: float) -> dict[str, Any] | None:
        """What the task's process says next, or how it ended, as {"ended": ...}; None after the deadline."""
        message = self._next(deadline)
        if message is None or "ended" in message:
            return message
        try:
            said = json.loads(message["said"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return {"nonsense": True}
        return said if isinstance(said, dict) and "ended" not in said else {"nonsense": True}

    def stop_task(self) -> dict[str, Any]:
        """End the task's process; how it ended."""
        self.send({"stop": True})
        return self.ended()

    def ended(self) -> dict[str, Any]:
        deadline = time.monotonic() + ANSWER_SECONDS
        while True:
            message = self._next(deadline)
            if message is None:
                raise Broken("no answer")
            if "ended" in message:
                return message["ended"]

    def _next(self, deadline: float) -> dict[str, Any] | None:
        while True:
            if len(self.received) >= LENGTH.size:
                (length,) = LENGTH.unpack_from(self.received)
                if length > MESSAGE_BYTES:
                    raise Broken("a message without an end")
                if len(self.received) >= LENGTH.size + length:
                    content = bytes(self.received[LENGTH.size : LENGTH.size + length])
                    del self.received[: LENGTH.size + length]
                    try:
                        message = json.loads(content)
                    except ValueError as error:
                        raise Broken("not a message") from error
                    return message if isinstance(message, dict) else {}
            descriptor = self.sandbox.stdout.fileno()
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                return None
            part = os.read(descriptor, 1 << 20)
            if not part:
                raise Broken("it has ended")
            self.received += part

    def close(self) -> None:
        self.sandbox.stop()


class Worker:
    """Judges one program after the other."""

    def __init__(self, layer: Layer):
        self.layer = layer
        self.programs: Interpreter | None = None
        self.checks: Interpreter | None = None

    def judge(self, problem: Problem, program: str, cpu_seconds: int) -> Verdict:
        """The verdict on one program; one that breaks its sandbox is tried again in a new one."""
        began = time.monotonic()
        for _ in range(TRIES):
            try:
                outcome, error, cpu = self._judge(problem, program, cpu_seconds)
                return Verdict(outcome, ADDRESS.sub("0x...", error), cpu, time.monotonic() - began)
            except (Broken, OSError):
                self.close()
        return Verdict("sandbox error", f"the sandbox broke {TRIES} times", 0.0, time.monotonic() - began)

    def _judge(self, problem: Problem, program: str, cpu_seconds: int) -> tuple[Outcome, str, float]:
        self.programs = self.programs or Interpreter(self.layer)
        self.checks = self.checks or Interpreter(self.layer)
        deadline = time.monotonic() + WALL * cpu_seconds
        self.programs.start(role="program", program=program, setup=problem.setup, cpu_seconds=cpu_seconds)
        said = self.programs.answer(deadline)
        ended = said["ended"] if said and "ended" in said else None
        if said and said.get("ready"):
            result, ended = self._check(problem, cpu_seconds, deadline)
        else:
            result = _of_program(said)
        if ended is None:
            ended = self.programs.stop_task()
        if not ended["clean"]:
            self.forget_programs()  # a process or a file of this program may meet the next
        return *_outcome(result, ended, cpu_seconds), ended["cpu"]

    def _check(
        self, problem: Problem, cpu_seconds: int, deadline: float
    ) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        """What the tests say, or the program's end; and that end, if it came."""
        programs, checks = self.programs, self.checks
        assert programs is not None and checks is not None
        checks.start(
            role="checks",
            prompt=problem.prompt,
            reference=problem.prompt + problem.solution,
            tests=problem.tests,
            entry_points=problem.entry_points,
            cpu_seconds=cpu_seconds,
        )
        while True:
            said = checks.answer(deadline)
            if said is None or "ask" not in said:
                if said is None or "ended" not in said:
                    checks.stop_task()
                elif said["ended"]["status"] not in (-signal.SIGXCPU, signal.SIGXCPU, signal.SIGKILL):
                    raise Broken("the tests' process has ended")
                return said, None
            programs.send(said["ask"])
            answer = programs.answer(deadline)
            if answer is None or "ended" in answer or "nonsense" in answer:
                checks.stop_task()
                return _of_program(answer), answer["ended"] if answer and "ended" in answer else None
            checks.send(answer)

    def forget_programs(self) -> None:
        if self.programs:
            self.programs.close()
            self.programs = None

    def close(self) -> None:
        self.forget_programs()
        if self.checks:
            self.checks.close()
            self.checks = None


def _of_program(said: dict[str, Any] | None) -> dict[str, Any] | None:
    """What counts of a program's own word: an error, or its end. That its tests have passed is not its to say."""
    return said and {name: said[name] for name in ("raised", "ended", "nonsense") if name in said}


def _outcome(result: dict[str, Any] | None, ended: dict[str, Any], cpu_seconds: int) -> tuple[Outcome, str]:
    """The verdict and the last line of the error.

    Args:
        result: what the tests or the program said last; None after the wall limit.
        ended: how the program's process ended.
    """
    if result is None:
        return "timeout", f"not done after {WALL * cpu_seconds} s"
    if result.get("passed") is True:
        return "passed", ""
    for who in ("raised", "failed"):
        if isinstance(result.get(who), dict):
            return _of_error(result[who], by_tests=who == "failed")
    if ended["over"] in ("output", "message"):
        return "output", "too much output"
    if "nonsense" in result:
        return "exception", "it wrote to the pipe of its tests"
    number = os.WTERMSIG(ended["status"]) if os.WIFSIGNALED(ended["status"]) else 0
    if number == signal.SIGXCPU or "ended" not in result or (number == signal.SIGKILL and ended["cpu"] >= cpu_seconds):
        return "timeout", f"more than {cpu_seconds} s of CPU time"
    if number == signal.SIGSYS:
        return "forbidden", "a system call that the sandbox does not allow"
    if number == signal.SIGKILL:
        return "memory", "killed for memory"
    if number:
        return "exception", signal.Signals(number).name
    return "exception", f"ended with exit code {os.waitstatus_to_exitcode(ended['status'])} before its tests did"


def _of_error(error: dict[str, Any], by_tests: bool) -> tuple[Outcome, str]:
    kind, text = str(error.get("kind")), str(error.get("text"))
    line = f"{error.get('type')}: {text}" if text else str(error.get("type"))
    if by_tests and kind == "AssertionError":
        return "failed", line
    if kind == "MemoryError":
        return "memory", line
    if kind == "PermissionError" or error.get("errno") in (1, 13):
        return "forbidden", line
    return "exception", line


def judge(
    problems: Mapping[str, Problem],
    programs: Sequence[tuple[int, str, str]],
    layer: Layer,
    workers: int,
    timeout: float | None,
) -> Iterator[tuple[int, Verdict]]:
    """The verdict on each program, in any order; what ran out of time runs again alone before that counts.

    Args:
        problems: by task_id.
        programs: of each a number, its task_id and its source.
        layer: of sandboxes, which is tried on solutions and wrong programs first.
        workers: programs at a time.
        timeout: CPU seconds per program; None: 3, or 10 times what the problem's own solution needs.

    Raises:
        UserError: if the sandbox does not judge right here.
    """
    by_task: dict[str, list[tuple[int, str]]] = {}
    for number, task_id, program in programs:
        by_task.setdefault(task_id, []).append((number, program))
    check_sandbox([problems[task_id] for task_id in list(by_task)[:CHECKED]], layer)
    late: list[tuple[int, str, str, int]] = []
    for number, task_id, program, verdict, limit in _parallel(problems, by_task, layer, workers, timeout):
        if verdict.outcome == "timeout":
            late.append((number, task_id, program, limit))
        else:
            yield number, verdict
    worker = Worker(layer)
    try:
        for number, task_id, program, limit in sorted(late):
            yield number, worker.judge(problems[task_id], program, limit)
    finally:
        worker.close()


def check_sandbox(problems: Sequence[Problem], layer: Layer) -> None:
    """Raise `UserError` unless these problems' solutions pass here, and functions that return None do not."""
    worker = Worker(layer)
    try:
        for problem in problems:
            wrong = "".join(f"def {name}(*args, **kwargs):\n    return None\n\n" for name in problem.entry_points)
            right, nothing = (
                worker.judge(problem, source, 10 * CPU_SECONDS) for source in (problem.prompt + problem.solution, wrong)
            )
            require(
                right.outcome == "passed",
                f"sandbox: {layer.name}: the solution of {problem.task_id} does not pass in it ({right.outcome}: "
                f"{right.error})",
            )
            require(nothing.outcome != "passed", f"sandbox: {layer.name}: a wrong solution of {problem.task_id} passes")
    finally:
        worker.close()


def _parallel(
    problems: Mapping[str, Problem],
    by_task: Mapping[str, list[tuple[int, str]]],
    layer: Layer,
    workers: int,
    timeout: float | None,
) -> Iterator[tuple[int, str, str, Verdict, int]]:
    """Number, task_id, source, verdict and CPU limit of each program; a worker takes a problem after the other."""
    tasks, done = queue.SimpleQueue[str | None](), queue.Queue[Any](1000)
    for task_id in (*by_task, *[None] * workers):
        tasks.put(task_id)
    stopped = threading.Event()

    def work() -> None:
        worker = Worker(layer)
        try:
            while (task_id := tasks.get()) is not None and not stopped.is_set():
                problem = problems[task_id]
                limit = math.ceil(timeout) if timeout else _limit_of(problem, worker)
                for number, program in by_task[task_id]:
                    if stopped.is_set():
                        return
                    done.put((number, task_id, program, worker.judge(problem, program, limit), limit))
                worker.forget_programs()  # one sandbox per problem
            done.put(None)
        except BaseException as error:
            done.put(error)
        finally:
            worker.close()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(workers)]
    for thread in threads:
        thread.start()
    try:
        running = workers
        while running:
            found = done.get()
            if isinstance(found, BaseException):
                raise found
            if found is None:
                running -= 1
            else:
                yield found
    finally:
        stopped.set()
        while any(thread.is_alive() for thread in threads):
            with suppress(queue.Empty):
                done.get(timeout=0.05)


def _limit_of(problem: Problem, worker: Worker) -> int:
    """CPU seconds for a problem's programs."""
    verdict = worker.judge(problem, problem.prompt + problem.solution, 20 * CPU_SECONDS)
    if verdict.outcome != "passed":
        log.warning(f"{problem.task_id}: the benchmark's own solution does not pass ({verdict.error})")
    return max(CPU_SECONDS, math.ceil(OF_SOLUTION * verdict.cpu_seconds))
