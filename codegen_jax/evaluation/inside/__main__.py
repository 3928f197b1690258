"""A warm interpreter inside the sandbox: it forks a process for each task, and passes messages to and from it.

A task is {"role": "program" or "checks", ...}, read from stdin; then come that process's messages, in both directions,
and {"stop": true} ends it. What it has said is wrapped in {"said": ...}, so that only this interpreter can tell how it
ended: {"ended": {...}}. A process of a task never holds stdin and stdout, nor anything of the tasks before.
"""

import contextlib
import ctypes
import importlib
import os
import resource
import select
import shutil
import signal
import sys

import checks
import program
from frames import LENGTH, receive, send

# what programs of benchmarks import: a fork has it already
WARM = ("bisect", "collections", "copy", "datetime", "decimal", "fractions", "functools", "hashlib", "heapq")
WARM += ("itertools", "math", "operator", "random", "re", "statistics", "string", "time", "typing")
PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 4, 36
MESSAGE_BYTES = 64 << 20  # of a task's process, at most


def main():
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # what a program leaves behind becomes our child, and is found
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)  # no process of ours may be traced
    source, end = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor in (0, 1):
        os.dup2(nothing, descriptor)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    wakeup, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for name in WARM:
        importlib.import_module(name)
    send(end, {"started": True})
    while True:
        try:
            task = receive(source)
        except EOFError:
            return
        if "role" in task:  # else it is for a task that has ended meanwhile
            serve(task, source, end, wakeup)


def serve(task, source, end, wakeup):
    to_child, from_child, output = os.pipe(), os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        be_the_task(task, to_child, from_child, output)
    for descriptor in (to_child[0], from_child[1], output[1]):
        os.close(descriptor)
    said, printed, over = bytearray(), 0, None
    status = usage = None
    while status is None or usage is None:
        ready, _, _ = select.select([source, from_child[0], output[0], wakeup], [], [])
        if wakeup in ready:
            os.read(wakeup, 4096)
        if from_child[0] in ready:
            said += os.read(from_child[0], 1 << 20) or b""
            over = over or pass_on(said, end)
        if output[0] in ready:
            printed += len(os.read(output[0], 1 << 20))
            if printed > task["output_bytes"]:
                over = over or "output"
        if source in ready:
            message = receive(source)
            if "stop" in message:
                over = over or "stopped"
            else:
                with contextlib.suppress(OSError):  # it has ended, or closed its pipes
                    send(to_child[1], message)
        if over:
            os.kill(pid, signal.SIGKILL)
        found, code, used = os.wait4(pid, 0 if over else os.WNOHANG)
        if found == pid:
            status, usage = code, used
    os.set_blocking(from_child[0], False)
    drain(from_child[0], said, end)
    for descriptor in (to_child[1], from_child[0], output[0]):
        os.close(descriptor)
    send(end, {"ended": {"status": status, "over": over, "cpu": usage.ru_utime + usage.ru_stime, "clean": is_clean()}})


def pass_on(said, end):
    """Send on the whole messages of a task's process, as they are; what is no message ends it."""
    while len(said) >= LENGTH.size:
        (length,) = LENGTH.unpack_from(said)
        if length > MESSAGE_BYTES:
            return "message"
        if len(said) < LENGTH.size + length:
            return None
        content = bytes(said[LENGTH.size : LENGTH.size + length])
        del said[: LENGTH.size + length]
        send(end, {"said": content.decode(errors="replace")})
    return None


def drain(descriptor, said, end):
    try:
        while part := os.read(descriptor, 1 << 20):
            said += part
    except BlockingIOError:
        pass
    pass_on(said, end)


def is_clean():
    """Whether a task left no process and no file; files are removed, if that can be."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
        return False  # one that lives
    except ChildProcessError:
        pass
    for name in os.listdir("."):
        try:
            shutil.rmtree(name) if os.path.isdir(name) and not os.path.islink(name) else os.unlink(name)
        except OSError:
            return False
    return True


def be_the_task(task, to_child, from_child, output):
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        for descriptor in (1, 2):
            os.dup2(output[1], descriptor)
        os.dup2(to_child[0], 3)
        os.dup2(from_child[1], 4)
        os.closerange(5, 256)
        limit = task["cpu_seconds"]
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 1))
        resource.setrlimit(resource.RLIMIT_AS, (task["memory_bytes"],) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        sys.setrecursionlimit(1000)
        roles = {"program": program.run, "checks": checks.run}
        run = roles[task["role"]]
        program.forget_ourselves()
        run(task, (3, 4))
        code = 0
    finally:
        os._exit(code)


if __name__ == "__main__":
    main()
