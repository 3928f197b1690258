"""Programs run and judged: each in a process of one sandbox, its tests in a process of another.

A worker has two sandboxes, each with a warm interpreter that forks a process per task (inside/__main__.py): one for
programs, one for tests. What a test calls crosses from one to the other through two pipes, as plain data
(inside/values.py). So a program can end itself, print, or take its own process to pieces, and no test passes by it.
"""

import json
import logging
import math
import os
import queue
import re
import resource
import select
import signal
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Self

from codegen_jax.errors import require
from codegen_jax.evaluation.inside.frames import LENGTH
from codegen_jax.evaluation.problems import Problem
from codegen_jax.evaluation.sandbox import OVER_MEMORY, Layer, Limits, Sandbox
from codegen_jax.evaluation.verdicts import Outcome, Verdict

log = logging.getLogger(__name__)

INSIDE = Path(__file__).parent / "inside"
CPU_SECONDS = 3  # of a program and of its tests, unless the problem's own solution needs a tenth of that
OF_SOLUTION = 10  # times what the problem's own solution needs
WALL = 10  # times the CPU limit: a program that sleeps ends by it, one that waits for a core does not
ANSWER_SECONDS = 10.0  # in which the interpreter itself answers
MEMORY_BYTES, OUTPUT_BYTES, ANSWER_BYTES = 1 << 30, 1 << 20, 1 << 20
TRIES = 3  # of a program whose sandbox breaks
END_SECONDS = 1.0  # in which a process ends that has closed its pipes by ending
KILLED = "killed for memory"
DESCRIPTORS = 16  # of a worker, at most
CHECKED = 5  # problems whose solutions are tried before a run
OWN_PROBLEM = "if the problem is of a file of yours, mend its solution or tests there, or leave it out"
ADDRESS = re.compile(r"0x[0-9a-f]{6,}")
FOLDER = re.compile(r"[^\s'\"]*codegen-sandbox-\w*(/scratch)?")  # another one each time, like addresses


class Broken(Exception):
    """A sandbox that does not answer as it should; says nothing of the program."""


class Interpreter:
    """The warm interpreter of one sandbox."""

    def __init__(self, layer: Layer):
        self.sandbox = Sandbox(layer, INSIDE, Limits())
        self.sandbox.stdin.settimeout(ANSWER_SECONDS)
        try:
            self.answer()
        except BaseException:
            self.sandbox.stop()
            raise

    def start(self, link: tuple[int, int], **task: Any) -> None:
        """Begin a task in a process of its own, which reads from and writes to the descriptors of `link`."""
        self._send({"memory_bytes": MEMORY_BYTES, "output_bytes": OUTPUT_BYTES} | task, link)

    def stop_task(self) -> None:
        self._send({"stop": True})

    def _send(self, message: Any, descriptors: Sequence[int] = ()) -> None:
        content = json.dumps(message).encode()
        try:
            socket.send_fds(self.sandbox.stdin, [LENGTH.pack(len(content))], descriptors)
            self.sandbox.stdin.sendall(content)
        except OSError as error:
            raise Broken(str(error)) from error

    def answer(self) -> dict[str, Any]:
        """What it says next: that it has started, or how a task has ended (`serve` of inside/__main__.py)."""
        deadline = time.monotonic() + ANSWER_SECONDS
        (length,) = LENGTH.unpack(self._read(LENGTH.size, deadline))
        if length > ANSWER_BYTES:
            raise Broken("an answer without an end")
        return json.loads(self._read(length, deadline))

    def _read(self, count: int, deadline: float) -> bytes:
        content = b""
        while len(content) < count:
            if not _readable([self.sandbox.stdout], deadline):
                raise Broken("no answer")
            part = self.sandbox.stdout.read(count - len(content))
            if not part:
                raise Broken("it has ended")
            content += part
        return content


def _readable(streams: Iterable[BinaryIO], deadline: float) -> list[BinaryIO]:
    """Those that can be read from, none after the deadline. `select` knows no descriptor above 1023."""
    by_number, poll = {stream.fileno(): stream for stream in streams}, select.poll()
    for number in by_number:
        poll.register(number, select.POLLIN)
    ready = poll.poll(1000 * max(0.0, deadline - time.monotonic()))
    return [by_number[number] for number, _ in ready]


class Worker:
    """Judges one program after the other."""

    def __init__(self, layer: Layer):
        self.layer = layer
        self.programs: Interpreter | None = None
        self.checks: Interpreter | None = None

    def judge(self, problem: Problem, program: str, cpu_seconds: int) -> Verdict:
        """The verdict on one program; one that breaks its sandbox is tried again in a new one."""
        began = time.monotonic()
        for tries_left in reversed(range(TRIES)):
            try:
                outcome, error, cpu = self._judge(problem, program, cpu_seconds)
                if error == KILLED and tries_left:
                    continue  # by the machine, it may be, for what others took: it counts if it happens each time
                error = FOLDER.sub(".", ADDRESS.sub("0x...", error))
                return Verdict(outcome, error, cpu, time.monotonic() - began)
            except (Broken, OSError):
                if OVER_MEMORY in self.close():
                    return Verdict("memory", OVER_MEMORY, 0.0, time.monotonic() - began)
        return Verdict("sandbox error", f"the sandbox broke {TRIES} times", 0.0, time.monotonic() - began)

    def _judge(self, problem: Problem, program: str, cpu_seconds: int) -> tuple[Outcome, str, float]:
        programs = self.programs = self.programs or Interpreter(self.layer)
        checks = self.checks = self.checks or Interpreter(self.layer)
        deadline = time.monotonic() + WALL * cpu_seconds
        questions, answers = os.pipe(), os.pipe()
        try:
            programs.start(
                (questions[0], answers[1]),
                role="program",
                program=program,
                setup=problem.setup,
                cpu_seconds=cpu_seconds,
            )
            checks.start(
                (answers[0], questions[1]),
                role="checks",
                prompt=problem.prompt,
                reference=f"{problem.prompt}{problem.solution}\n{problem.setup}",
                tests=problem.tests,
                entry_points=problem.entry_points,
                cpu_seconds=cpu_seconds,
            )
        finally:
            for descriptor in (*questions, *answers):
                os.close(descriptor)
        ends: dict[Interpreter, dict[str, Any]] = {}
        while checks not in ends:
            running = {one.sandbox.stdout: one for one in (programs, checks) if one not in ends}
            ready = _readable(running, deadline)
            if not ready:
                break
            for one in map(running.__getitem__, ready):
                ends[one] = one.answer()
            if programs in ends and not ends[programs]["clean"]:
                self.forget_programs()  # what the program has left behind may hold the tests' pipes
        in_time = checks in ends
        is_gone = in_time and programs not in ends and '"gone"' in ends[checks]["said"]
        # how it ends by itself is the verdict, so it is not killed amid that
        if is_gone and _readable([programs.sandbox.stdout], time.monotonic() + END_SECONDS):
            ends[programs] = programs.answer()
        for one in (programs, checks):
            if one not in ends:
                one.stop_task()
                ends[one] = one.answer()
        outcome, error = _outcome(ends[programs], ends[checks], cpu_seconds, in_time)
        if not ends[programs]["clean"] or outcome not in ("passed", "failed", "exception"):
            self.forget_programs()
        return outcome, error, ends[programs]["cpu"] + ends[checks]["cpu"]

    def forget_programs(self) -> str:
        """End the sandbox of programs; what it says at its end."""
        programs, self.programs = self.programs, None
        if not programs:
            return ""
        programs.sandbox.stop()
        return programs.sandbox.messages

    def close(self) -> str:
        """End both sandboxes; what they say at their end."""
        said, checks, self.checks = self.forget_programs(), self.checks, None
        if not checks:
            return said
        checks.sandbox.stop()
        return said + checks.sandbox.messages


def _outcome(
    program: Mapping[str, Any], checks: Mapping[str, Any], cpu_seconds: int, in_time: bool
) -> tuple[Outcome, str]:
    """The verdict and the last line of the error.

    Args:
        program: how its process ended.
        checks: how the tests' process ended, with their word in `said`.
        in_time: whether that was before the wall limit.
    """
    if not in_time:
        return "timeout", f"not done after {WALL * cpu_seconds} s"
    if not checks["said"]:
        if _is_over_time(checks, cpu_seconds):
            return "timeout", f"tests of more than {cpu_seconds} s of CPU time"
        raise Broken("the tests' process has ended")
    said = json.loads(checks["said"])
    if said.get("passed") is True:
        return "passed", ""
    for who in ("raised", "failed"):
        if who in said:
            return _of_error(said[who], by_tests=who == "failed")
    if program["over"] == "output":
        return "output", f"more than {OUTPUT_BYTES >> 20} MiB of output"
    if _is_over_time(program, cpu_seconds):
        return "timeout", f"more than {cpu_seconds} s of CPU time"
    number = _signal(program["status"])
    if "nonsense" in said or (program["over"] and number == signal.SIGKILL):
        return "exception", "it wrote to the pipe of its tests, or closed it"
    if number == signal.SIGSYS:
        return "forbidden", "a system call that the sandbox does not allow"
    if number == signal.SIGKILL:
        return "memory", KILLED
    if number:
        return "exception", signal.Signals(number).name
    return "exception", f"ended with exit code {os.waitstatus_to_exitcode(program['status'])} before its tests did"


def _is_over_time(end: Mapping[str, Any], cpu_seconds: int) -> bool:
    number = _signal(end["status"])
    return number == signal.SIGXCPU or (number == signal.SIGKILL and end["cpu"] >= cpu_seconds)


def _signal(status: int) -> int:
    """What ended a process, 0 if that was no signal."""
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


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


class Judges:
    """Workers that judge programs as they come, beside what else this process does.

    What runs out of time runs again at the end, alone, before that counts.

    Args:
        layer: of sandboxes.
        workers: programs at a time.
        timeout: CPU seconds per program; None: 3, or 10 times what the problem's own solution needs.
    """

    def __init__(self, layer: Layer, workers: int, timeout: float | None):
        _allow_descriptors(workers)
        self.layer, self.timeout = layer, timeout
        self.limit = math.ceil(timeout or CPU_SECONDS)
        self.waiting, self.done = queue.SimpleQueue[Any](), queue.SimpleQueue[Any]()
        self.outstanding, self.late = 0, list[tuple[Any, Problem, str]]()
        self.stopped = threading.Event()
        self.threads = [threading.Thread(target=self._work, daemon=True) for _ in range(workers)]
        for thread in self.threads:
            thread.start()

    def submit(self, key: Any, problem: Problem, program: str) -> None:
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
        worker, limits = Worker(self.layer), dict[str, int]()
        try:
            for key, problem, program in self.late:
                if not self.timeout and problem.task_id not in limits:
                    limits[problem.task_id] = _limit_of(problem, worker)
                yield key, worker.judge(problem, program, limits.get(problem.task_id, self.limit))
        finally:
            worker.close()

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
        worker = Worker(self.layer)
        try:
            while (program := self.waiting.get()) is not None and not self.stopped.is_set():
                self.done.put((program, worker.judge(program[1], program[2], self.limit)))
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
    with Judges(layer, workers, timeout) as judges:
        for number, task_id, program in programs:
            judges.submit(number, problems[task_id], program)
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


def _limit_of(problem: Problem, worker: Worker) -> int:
    """CPU seconds for a problem's programs."""
    verdict = worker.judge(problem, problem.prompt + problem.solution, 20 * CPU_SECONDS)
    if verdict.outcome != "passed":
        log.warning(f"{problem.task_id}: the benchmark's own solution does not pass ({verdict.error})")
    return max(CPU_SECONDS, math.ceil(OF_SOLUTION * verdict.cpu_seconds))
