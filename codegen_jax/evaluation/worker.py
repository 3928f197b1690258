"""Run and judge programs: each program in a process in one sandbox, its tests in a process in another.

A worker has two sandboxes, one for programs and one for tests. Each has a warm interpreter that forks a process per
task (inside/__main__.py). Calls from tests cross from one to the other through two pipes, as plain data
(inside/values.py). A program may exit, print, or tamper with its own process: none of this makes a test pass.
A program whose printed value is compared needs one sandbox only: the comparison is made here (mtpb/printed.py).
"""

import json
import logging
import os
import re
import secrets
import select
import signal
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from codegen_jax.evaluation.inside.frames import LENGTH
from codegen_jax.evaluation.mtpb.printed import Printed, difference
from codegen_jax.evaluation.problems import Problem
from codegen_jax.evaluation.sandbox import MEMORY_EXCEEDED, Layer, Limits, Sandbox
from codegen_jax.evaluation.verdicts import Outcome, Verdict

log = logging.getLogger(__name__)

INSIDE = Path(__file__).parent / "inside"
CPU_SECONDS = 3  # for a program, and for its tests; higher if the problem's own solution needs over a tenth of it
PRINTED_CPU_SECONDS = 20  # for a program whose printed value is compared, as in the authors' checker
WALL = 10  # wall-clock limit as a multiple of the CPU limit: stops programs that sleep, not those waiting for a core
ANSWER_SECONDS = 10.0  # time for the interpreter itself to answer
MEMORY_BYTES, OUTPUT_BYTES, ANSWER_BYTES = 1 << 30, 1 << 20, 1 << 20
PACKAGES = ("numpy", "pandas", "scikit-learn")  # named in MTPB's prompts; used if installed
TRIES = 3  # for a program whose sandbox fails
END_SECONDS = 1.0  # time for a process to end after its pipes have closed
ERROR_CHARACTERS = 1000  # maximum length of an error
KILLED = "killed by SIGKILL, usually for lack of memory"
PIPE_BYTES = 60 << 10  # bytes that fit in a pipe before anything is read from it
ADDRESS = re.compile(r"0x[0-9a-f]{6,}")
FOLDER = re.compile(r"[^\s'\"]*codegen-sandbox-\w*(/scratch)?")  # varies between runs, like addresses


Reference = Problem | Printed  # what a program is judged against: a problem's tests, or the value it must print
# (reference, program, CPU limit in seconds) -> (outcome, last line of the error, CPU seconds used)
JudgeMethod = Callable[[Any, str, int], tuple[Outcome, str, float]]


class SandboxError(Exception):
    """A sandbox did not answer correctly; this is not a verdict on the program."""


class Interpreter:
    """The warm interpreter of one sandbox, in which the packages in `installed` may be imported."""

    def __init__(self, layer: Layer, installed: Sequence[str] = ()):
        self.installed = installed
        self.sandbox = Sandbox(layer, INSIDE, Limits(), installed)
        self.sandbox.stdin.settimeout(ANSWER_SECONDS)
        try:
            self.answer()
        except BaseException:
            self.sandbox.stop()
            raise

    def start(self, link: tuple[int, int], **task: Any) -> None:
        """Start a task in its own process, which reads from and writes to the descriptors in `link`."""
        self._send({"memory_bytes": MEMORY_BYTES, "output_bytes": OUTPUT_BYTES} | task, link)

    def stop_task(self) -> None:
        self._send({"stop": True})

    def _send(self, message: Any, descriptors: Sequence[int] = ()) -> None:
        content = json.dumps(message).encode()
        try:
            socket.send_fds(self.sandbox.stdin, [LENGTH.pack(len(content))], descriptors)
            self.sandbox.stdin.sendall(content)
        except OSError as error:
            raise SandboxError(str(error)) from error

    def answer(self) -> dict[str, Any]:
        """The next message: the interpreter has started, or how a task ended (see `serve` in inside/__main__.py)."""
        deadline = time.monotonic() + ANSWER_SECONDS
        (length,) = LENGTH.unpack(self._read(LENGTH.size, deadline))
        if length > ANSWER_BYTES:
            raise SandboxError("the answer is too long")
        return json.loads(self._read(length, deadline))

    def _read(self, count: int, deadline: float) -> bytes:
        content = b""
        while len(content) < count:
            if not _readable([self.sandbox.stdout], deadline):
                raise SandboxError("no answer")
            part = self.sandbox.stdout.read(count - len(content))
            if not part:
                raise SandboxError("the sandbox has ended")
            content += part
        return content


def _readable(streams: Iterable[BinaryIO], deadline: float) -> list[BinaryIO]:
    """The streams ready for reading; empty at the deadline. Not `select`, which fails above descriptor 1023."""
    by_number, poll = {stream.fileno(): stream for stream in streams}, select.poll()
    for number in by_number:
        poll.register(number, select.POLLIN)
    ready = poll.poll(1000 * max(0.0, deadline - time.monotonic()))
    return [by_number[number] for number, _ in ready]


class Worker:
    """Judges one program at a time.

    Args:
        layer: the layer of its sandboxes.
        one_process_only: task_ids of problems whose own solution passes only in one process with the tests, since some
            values can't cross between processes. The worker adds to this set.
    """

    def __init__(self, layer: Layer, one_process_only: set[str] | None = None):
        self.layer, self.one_process_only = layer, set[str]() if one_process_only is None else one_process_only
        self.two_process_ok: set[str] = set()
        self.programs: Interpreter | None = None
        self.checks: Interpreter | None = None

    def judge(self, problem: Reference, program: str, cpu_seconds: int) -> Verdict:
        """The verdict on one program. If the sandbox fails, the program is tried again in a new one."""
        if isinstance(problem, Printed):
            return self._with_retries(self._judge_printed, problem, program, cpu_seconds)
        verdict = self._with_retries(self._judge, problem, program, cpu_seconds)
        if verdict.outcome in ("failed", "exception") and not self._works_in_two_processes(problem):
            return self._with_retries(self._judge_in_one_process, problem, program, cpu_seconds)
        return verdict

    def _works_in_two_processes(self, problem: Problem) -> bool:
        """Whether a failure in two processes counts. It does not if the problem's own solution also fails there but
        passes in one process."""
        if problem.task_id not in self.two_process_ok | self.one_process_only:
            own_solution = problem, problem.prompt + problem.solution, 20 * CPU_SECONDS
            passes = lambda method: self._with_retries(method, *own_solution).outcome == "passed"
            if passes(self._judge) or not passes(self._judge_in_one_process):
                self.two_process_ok.add(problem.task_id)
            else:
                self.one_process_only.add(problem.task_id)
                log.warning(
                    f"{problem.task_id}: its tests use values that can't cross between processes, so programs and "
                    "tests run in one process, where a malicious program could pass without solving the problem"
                )
        return problem.task_id in self.two_process_ok

    def _with_retries(self, method: JudgeMethod, problem: Reference, program: str, seconds: int) -> Verdict:
        began = time.monotonic()
        for tries_left in reversed(range(TRIES)):
            try:
                outcome, error, cpu = method(problem, program, seconds)
                if error == KILLED and tries_left:
                    continue  # may be due to other processes: counts only if every try is killed
                error = " ".join(error[:ERROR_CHARACTERS].splitlines())  # it may be long and have many lines
                error = FOLDER.sub(".", ADDRESS.sub("0x...", error))
                return Verdict(outcome, error, cpu, time.monotonic() - began)
            except (SandboxError, OSError):
                if MEMORY_EXCEEDED in self.close():
                    return Verdict("memory", MEMORY_EXCEEDED, 0.0, time.monotonic() - began)
        return Verdict("sandbox error", f"the sandbox failed {TRIES} times", 0.0, time.monotonic() - began)

    def _interpreter(self, installed: Sequence[str] = ()) -> Interpreter:
        """The interpreter for programs that may import these packages."""
        if self.programs and self.programs.installed != installed:
            self.discard_programs()
        self.programs = self.programs or Interpreter(self.layer, installed)
        return self.programs

    def _judge_in_one_process(self, problem: Problem, program: str, cpu_seconds: int) -> tuple[Outcome, str, float]:
        nonce = secrets.token_hex(16)
        content = json.dumps({"tests": problem.tests, "nonce": nonce}).encode()
        if len(content) > PIPE_BYTES:
            raise SandboxError("the tests do not fit in a pipe")
        task = {"role": "program with tests", "program": program, "setup": problem.setup}
        end, in_time = self._run_alone(
            self._interpreter(), task, LENGTH.pack(len(content)) + content, cpu_seconds, WALL * cpu_seconds
        )
        try:
            report = json.loads(end["report"] or '{"gone": true}')
            is_forged = "passed" in report and report["nonce"] != nonce
        except (ValueError, TypeError, KeyError):
            report, is_forged = {}, True
        outcome, error = _outcome({"invalid": True} if is_forged else report, end, cpu_seconds, in_time)
        self._discard_unless_clean(outcome, end)
        return outcome, error, end["cpu"]

    def _judge_printed(self, printed: Printed, program: str, cpu_seconds: int) -> tuple[Outcome, str, float]:
        interpreter, wall_seconds = self._interpreter(PACKAGES), WALL * cpu_seconds
        task = {
            "role": "printed",
            "program": program,
            "expected": type(printed.case.expected).__name__,
            "packages": str(interpreter.sandbox.packages),
            "wall_seconds": wall_seconds,
        }
        # the task's own alarm fires first, so a value printed before it counts
        end, in_time = self._run_alone(interpreter, task, b"", cpu_seconds, wall_seconds + ANSWER_SECONDS)
        outcome, error = _outcome_of_printed(printed, end, cpu_seconds, in_time)
        self._discard_unless_clean(outcome, end)
        return outcome, error, end["cpu"]

    def _run_alone(
        self, interpreter: Interpreter, task: Mapping[str, Any], content: bytes, cpu_seconds: int, wall_seconds: float
    ) -> tuple[dict[str, Any], bool]:
        """Run a task that needs one sandbox; return how it ended and whether in time. The task can read `content`."""
        deadline, link = time.monotonic() + wall_seconds, os.pipe()
        try:
            interpreter.start(link, cpu_seconds=cpu_seconds, **task)
            os.write(link[1], content)
        finally:
            for descriptor in link:
                os.close(descriptor)
        in_time = bool(_readable([interpreter.sandbox.stdout], deadline))
        if not in_time:
            interpreter.stop_task()
        return interpreter.answer(), in_time

    def _discard_unless_clean(self, outcome: Outcome, end: Mapping[str, Any]) -> None:
        if not end["clean"] or outcome not in ("passed", "failed", "exception"):
            self.discard_programs()

    def _judge(self, problem: Problem, program: str, cpu_seconds: int) -> tuple[Outcome, str, float]:
        programs = self._interpreter()
        checks = self.checks = self.checks or Interpreter(self.layer)
        deadline = time.monotonic() + WALL * cpu_seconds
        requests, answers = os.pipe(), os.pipe()
        try:
            programs.start(
                (requests[0], answers[1]),
                role="program",
                program=program,
                setup=problem.setup,
                cpu_seconds=cpu_seconds,
            )
            checks.start(
                (answers[0], requests[1]),
                role="checks",
                prompt=problem.prompt,
                reference=f"{problem.prompt}{problem.solution}\n{problem.setup}",
                tests=problem.tests,
                entry_points=problem.entry_points,
                cpu_seconds=cpu_seconds,
            )
        finally:
            for descriptor in (*requests, *answers):
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
                self.discard_programs()  # processes left by the program may hold the tests' pipes open
        in_time = checks in ends
        is_gone = in_time and programs not in ends and '"gone"' in ends[checks]["report"]
        # the way the program ends decides the verdict, so let it end on its own
        if is_gone and _readable([programs.sandbox.stdout], time.monotonic() + END_SECONDS):
            ends[programs] = programs.answer()
        for one in (programs, checks):
            if one not in ends:
                one.stop_task()
                ends[one] = one.answer()
        content = ends[checks]["report"]
        if in_time and not content and not _exceeded_cpu(ends[checks], cpu_seconds):
            raise SandboxError("the tests' process has ended")
        report = json.loads(content) if content else {"timeout": True}
        outcome, error = _outcome(report, ends[programs], cpu_seconds, in_time)
        self._discard_unless_clean(outcome, ends[programs])
        return outcome, error, ends[programs]["cpu"] + ends[checks]["cpu"]

    def discard_programs(self) -> str:
        """Stop the program sandbox and return its messages."""
        programs, self.programs = self.programs, None
        if not programs:
            return ""
        programs.sandbox.stop()
        return programs.sandbox.messages

    def close(self) -> str:
        """Stop both sandboxes and return their messages."""
        messages, checks, self.checks = self.discard_programs(), self.checks, None
        if not checks:
            return messages
        checks.sandbox.stop()
        return messages + checks.sandbox.messages


def _outcome(
    report: Mapping[str, Any],
    program: Mapping[str, Any],
    cpu_seconds: int,
    in_time: bool,
    before: str = "its tests ended",
) -> tuple[Outcome, str]:
    """The verdict and the last line of the error.

    Args:
        report: the report of the tests' process.
        program: how the program's process ended.
        in_time: whether the tests ended before the wall-clock limit.
        before: in the message, the event before which the program exited.
    """
    if not in_time:
        return "timeout", f"not finished after {WALL * cpu_seconds} s"
    if "timeout" in report:
        return "timeout", f"the tests took more than {cpu_seconds} s of CPU time"
    if report.get("passed") is True:
        return "passed", ""
    for kind in ("raised", "failed"):
        if kind in report:
            return _error_outcome(report[kind], by_tests=kind == "failed")
    if program["over"] == "output":
        return "output", f"more than {OUTPUT_BYTES >> 20} MiB of output"
    if _exceeded_cpu(program, cpu_seconds):
        return "timeout", f"more than {cpu_seconds} s of CPU time"
    number = _signal(program["status"])
    if "invalid" in report or (program["over"] and number == signal.SIGKILL):
        return "exception", "tampered with the pipe to its tests"
    if number == signal.SIGSYS:
        return "forbidden", "made a system call that the sandbox does not allow"
    if number == signal.SIGKILL:
        return "memory", KILLED
    if number:
        return "exception", signal.Signals(number).name
    return "exception", f"exited with code {os.waitstatus_to_exitcode(program['status'])} before {before}"


def _outcome_of_printed(
    printed: Printed, end: Mapping[str, Any], cpu_seconds: int, in_time: bool
) -> tuple[Outcome, str]:
    """The verdict on a program by the value it printed last, regardless of how it ended afterwards."""
    if not end["report"]:
        return _outcome({}, end, cpu_seconds, in_time, before="its value was read")
    try:
        report = json.loads(end["report"])
        mistake = difference(printed, report)
        if not mistake:
            return "passed", ""
        if "timeout" in report:
            return "timeout", f"more than {cpu_seconds} s of CPU time, or {WALL * cpu_seconds} s of wall-clock time"
        return _error_outcome(report["raised"], by_tests=False) if "raised" in report else ("failed", mistake)
    except Exception:  # a program can write anything to the pipe
        return "exception", "tampered with the pipe that returns its value"


def _exceeded_cpu(end: Mapping[str, Any], cpu_seconds: int) -> bool:
    number = _signal(end["status"])
    return number == signal.SIGXCPU or (number == signal.SIGKILL and end["cpu"] >= cpu_seconds)


def _signal(status: int) -> int:
    """The signal that ended a process; 0 if none did."""
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def _error_outcome(error: dict[str, Any], by_tests: bool) -> tuple[Outcome, str]:
    kind, text = str(error.get("kind")), str(error.get("text"))
    line = f"{error.get('type')}: {text}" if text else str(error.get("type"))
    if by_tests and kind == "AssertionError":
        return "failed", line
    if kind == "MemoryError":
        return "memory", line
    if kind == "PermissionError" or error.get("errno") in (1, 13):
        return "forbidden", line
    return "exception", line
