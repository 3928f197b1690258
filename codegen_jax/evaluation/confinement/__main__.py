"""`python -I -S confinement SETTINGS`: supervises a program until it ends or the stop pipe becomes readable.

SETTINGS is JSON. This supervisor stays outside the confinement and is the ancestor of all confined processes: it adopts
those whose parents have died, adds up their memory, and exits when none is left.
"""

import contextlib
import json
import os
import select
import signal
import sys
import time

import kernel
import landlock
import last_step
import quarters

# A program can allocate about 1 GB per second, so it may exceed the cap by about 100 MB.
_POLL_SECONDS = 0.1
_THREADS_OF_SANDLOCK = 8


def main() -> None:
    settings = json.loads(sys.argv[1])
    if settings["inside"]:
        last_step.confine_and_exec(settings)
    os.set_inheritable(settings["stop_pipe"], False)
    kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
    layers = {"sandlock": _sandlock, "bubblewrap": _bubblewrap, "namespaces": _namespaces, "UNSAFE": _unsafe}
    # If the machine runs out of memory, the program should be killed, not its supervisor.
    _set_oom_score(1000)
    child = layers[settings["layer"]](settings)
    _set_oom_score(0)
    _supervise(child, settings)


def _supervise(child: int, settings: dict) -> None:
    """Wait until `child` ends, memory runs out or the stop pipe is readable; then kill all processes and exit."""
    stop_pipe, resident_bytes = settings["stop_pipe"], settings["limits"]["resident_bytes"]
    _release_streams()
    watched = select.poll()  # `select` supports no descriptor above 1023, and the stop pipe may be one
    for descriptor in (stop_pipe, os.pidfd_open(child)):
        watched.register(descriptor, select.POLLIN)
    while not watched.poll(1000 * _POLL_SECONDS):
        if sum(_resident_bytes(process) for process in _descendants(os.getpid())) > resident_bytes:
            print(settings["memory_exceeded"], file=sys.stderr, flush=True)
            break
    with contextlib.suppress(ChildProcessError):
        while True:
            for process in _descendants(os.getpid()):
                _kill(process)
            # The list of children may be incomplete while some of them end, so don't wait long for any one of them.
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.001)
    # A normal exit would wait for sandlock's threads.
    os._exit(0)


def _set_oom_score(points: int) -> None:
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write(str(points))


def _release_streams() -> None:
    """Detach from stdin and stdout: while another process holds them open, their other end sees no end of file."""
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)


def _descendants(process: int) -> list[int]:
    found = []
    for child in _children(process):
        found += [child, *_descendants(child)]
    return found


def _children(process: int) -> list[int]:
    try:
        threads = os.listdir(f"/proc/{process}/task")
        return [int(child) for thread in threads for child in _read(f"/proc/{process}/task/{thread}/children").split()]
    except OSError:
        return []


def _resident_bytes(process: int) -> int:
    try:
        return int(_read(f"/proc/{process}/statm").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _read(path: str) -> str:
    with open(path) as file:
        return file.read()


def _kill(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def _run(settings: dict) -> list[str]:
    """The command that performs the last step inside another layer."""
    inner = json.dumps(settings | {"inside": True})
    return [settings["python"], "-I", "-S", os.path.dirname(os.path.abspath(__file__)), inner]


def _sandlock(settings: dict) -> int:
    # Imported while the files of the virtual environment are still visible.
    sys.path.append(settings["packages"])
    import sandlock

    try:
        quarters.enter(settings)
    except OSError:
        # Most containers refuse this. Without mounts, no folder has a size limit, so the program may not write at all.
        # Sandlock then counts the processes, and its count never drops when one is killed.
        quarters.become_nobody()
        settings["private_root"] = False
    # All threads of the user count, including sandlock's own.
    settings["limits"]["processes"] += _THREADS_OF_SANDLOCK + (os.cpu_count() or 1)
    sandbox = sandlock.Sandbox(
        fs_readable=[*settings["readable"], *quarters.DEVICES, settings["scratch"]],
        fs_writable=[*quarters.DEVICES, *([settings["scratch"]] if settings["private_root"] else [])],
        max_processes=None if settings["private_root"] else settings["limits"]["processes"],
        clean_env=True,
        cwd=settings["scratch"],
    )
    # Kept in the module, since sandlock kills the program when its handle is garbage-collected.
    global _process
    _process = sandbox.popen(_run(settings))
    assert _process.pid is not None
    return _process.pid


def _bubblewrap(settings: dict) -> int:
    quarters.enter(settings)
    binds = [word for path in settings["readable"] for word in ("--ro-bind", path, path)]
    covers = [word for path in settings["hidden"] for word in ("--tmpfs", path)]
    covers += [word for path in settings["shown"] for word in ("--ro-bind", path, path)]
    covers += [word for path in settings["hidden"] for word in ("--remount-ro", path)]
    devices = [word for path in quarters.DEVICES for word in ("--dev-bind", path, path)]
    scratch = ["--bind", settings["scratch"], settings["scratch"]]
    options = ["--unshare-all", "--die-with-parent", "--new-session", "--clearenv"]
    command = [settings["bwrap"], *options, *binds, *covers, *devices, *scratch, "--remount-ro", "/", "--"]
    return os.posix_spawn(settings["bwrap"], command + _run(settings), {})


def _namespaces(settings: dict) -> int:
    if landlock.abi() < 1:
        raise OSError("the kernel does not support Landlock")
    quarters.enter(settings)
    kernel.unshare(kernel.CLONE_NEWPID | kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS)
    first = os.fork()
    if first:
        return first
    try:
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        kernel.unshare(kernel.CLONE_NEWNS)
        kernel.mount("tmpfs", "/proc", "tmpfs", kernel.MS_RDONLY, "size=4k")
        # The first process of a PID namespace adopts and reaps orphans; when it ends, all others end, too.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        program = os.fork()
        if program == 0:
            last_step.confine_and_exec(settings)
        _release_streams()
        while os.wait()[0] != program:
            pass
    except BaseException as error:
        print(error, file=sys.stderr, flush=True)
    finally:
        os._exit(0)


def _unsafe(settings: dict) -> int:
    command = [settings["python"], "-P", "-s", "-S", settings["program"]]
    os.chdir(settings["scratch"])
    others = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return os.posix_spawn(settings["python"], command, others | last_step.ENVIRONMENT)


if __name__ == "__main__":
    main()
