"""Run one confined process and its descendants, communicate with it, and stop it without leaving anything behind."""

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

_CONFINEMENT = Path(__file__).with_name("confinement")
# The system's shared libraries, which Python's extension modules link against.
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")
_MESSAGE_BYTES = 4096
MEMORY_EXCEEDED = "its processes together exceeded the memory limit"
"""Appears in a sandbox's `messages` if it was killed for this reason."""


@dataclass(frozen=True)
class Limits:
    """Resource limits of a sandbox. CPU time is not included; the program must limit its own."""

    memory_bytes: int = 1 << 30
    """Address space per process."""
    resident_bytes: int = 3 << 29
    """Memory of all processes together, checked every 0.1 s. They may exceed it by about 100 MB before being killed."""
    processes: int = 32
    """Number of simultaneous processes; threads count too, except under sandlock."""
    descriptors: int = 128
    """Open files per process."""
    scratch_bytes: int = 64 << 20
    """Total size of the files in the scratch folder."""


@dataclass(frozen=True)
class Layer:
    """What confines a program: one of `LAYERS` in sandbox_layers.py, or UNSAFE, which confines nothing."""

    name: str
    description: tuple[str, ...]
    """The active mechanisms with their versions, for reports."""


class Sandbox:
    """`python -P -s -S program`, confined.

    The program can read its own file or folder, Python's standard library, the system's shared libraries and five
    devices (/dev/null, zero, full, random, urandom). It can also read the packages in `installed`, through links in the
    folder `packages`, which it must add to its path. Its working directory, initially empty, is the only folder
    it can write to. It has no environment except a hash seed, no network, no /proc, and the rights of user nobody.

    `stdin` is a stream socket, so it can pass file descriptors; `stdout` is an unbuffered pipe. Standard error is a
    pipe that is only read at the end, for `messages`: a writer blocks once its 64 KiB are full. `folder` is the
    sandbox's folder, seen from outside; `stop` removes it.

    Args:
        layer: from `choose_layer`.
        program: a file, or a folder that contains __main__.py.
        limits: limits of the sandbox.
        installed: names of distributions. The program may import those that are installed, and their dependencies.

    Raises:
        OSError: if no process could be started. If confinement fails, `stdout` reaches its end.
    """

    def __init__(self, layer: Layer, program: Path, limits: Limits = Limits(), installed: Iterable[str] = ()) -> None:
        self.layers = list(layer.description)
        self.folder = Path(tempfile.mkdtemp(prefix="codegen-sandbox-")).resolve()
        # Other users need access: programs started by root do not run as root.
        self.folder.chmod(0o711)
        (self.folder / "scratch").mkdir()
        self.packages = self.folder / "packages"
        self.packages.mkdir()
        importable = _files_of(installed)
        for name, path in importable.items():
            (self.packages / name).symlink_to(path)
        stop_pipe, self._stop_pipe = os.pipe()
        self.stdin, stdin = socket.socketpair()
        settings = {
            "inside": False,
            "private_root": True,
            "layer": layer.name,
            "stop_pipe": stop_pipe,
            "python": _python(),
            "program": str(program.resolve()),
            "scratch": str(self.folder / "scratch"),
            "packages": _packages(),
            "memory_exceeded": MEMORY_EXCEEDED,
            "bwrap": shutil.which("bwrap"),
            "limits": asdict(limits),
            **_allowed(program.resolve(), [str(self.packages), *importable.values()]),
        }
        try:
            self._supervisor = subprocess.Popen(
                [_python(), "-I", "-S", str(_CONFINEMENT), json.dumps(settings)],
                bufsize=0,
                stdin=stdin.fileno(),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(stop_pipe,),
                env=None if layer.name == "UNSAFE" else {"HOME": "/"},
                cwd="/",
                start_new_session=True,
            )
        except OSError:
            os.close(self._stop_pipe)
            self.stdin.close()
            shutil.rmtree(self.folder)
            raise
        finally:
            os.close(stop_pipe)
            stdin.close()
        assert self._supervisor.stdout and self._supervisor.stderr
        self.stdout: BinaryIO = self._supervisor.stdout  # pyright: ignore[reportAttributeAccessIssue]
        self._stderr = self._supervisor.stderr
        self._messages = ""

    @property
    def pid(self) -> int:
        """The sandbox's supervisor process; when it ends, the sandbox ends."""
        return self._supervisor.pid

    def stop(self) -> None:
        """Kill all of its processes at once and remove its folder. A second call does nothing."""
        if self._stop_pipe < 0:
            return
        # Write a byte: closing is not enough, since a process forked from this one may hold the pipe open.
        with contextlib.suppress(BrokenPipeError):
            os.write(self._stop_pipe, b".")
        self._supervisor.wait()
        os.close(self._stop_pipe)
        self._stop_pipe = -1
        os.set_blocking(self._stderr.fileno(), False)
        self._messages = (self._stderr.read(1 << 16) or b"")[-_MESSAGE_BYTES:].decode(errors="replace")
        for stream in (self.stdin, self.stdout, self._stderr):
            stream.close()
        shutil.rmtree(self.folder)

    @property
    def messages(self) -> str:
        """The end of standard error; empty before `stop`."""
        return self._messages

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _python() -> str:
    # A virtual environment's Python is a link; this is the interpreter itself.
    return os.path.realpath(sys.executable)


def _packages() -> str:
    """The folder where sandlock is installed, or "". The supervisor needs it since it runs without site-packages."""
    found = importlib.util.find_spec("sandlock")
    return str(Path(found.origin).parents[1]) if found and found.origin else ""


def _files_of(distributions: Iterable[str]) -> dict[str, str]:
    """Installed files and folders of these distributions and their dependencies: paths by top-level name."""
    paths, pending, seen = dict[str, str](), list(distributions), set[str]()
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found = importlib.metadata.distribution(name)
            pending += [re.split(r"[^\w.-]", line)[0] for line in found.requires or () if "extra ==" not in line]
            names = {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}
            paths |= {name: os.path.realpath(str(found.locate_file(name))) for name in names}
    return dict(sorted(paths.items()))


def _allowed(program: Path, packages: Iterable[str]) -> dict[str, list[str]]:
    """Paths that may be read, and folders in them that are hidden: installed packages, which may contain solutions.

    "shown" lists the paths in hidden folders that may still be read.
    """
    paths = sysconfig.get_paths(vars={"base": sys.base_prefix, "platbase": sys.base_exec_prefix})
    standard = list(dict.fromkeys(os.path.realpath(paths[name]) for name in ("stdlib", "platstdlib")))
    hidden = [f"{folder}/{name}" for folder in standard for name in ("site-packages", "dist-packages")]
    # The interpreter's shared library, if it has one.
    shared = Path(sysconfig.get_config_var("LIBDIR") or "/", sysconfig.get_config_var("INSTSONAME") or "none")
    readable = {*_LIBRARIES, "/etc/ld.so.cache", *standard, _python(), str(_CONFINEMENT), str(program), str(shared)}
    readable = {path for path in readable.union(packages) if os.path.exists(path)}
    return {
        "readable": sorted(path for path in readable if readable.isdisjoint(map(str, Path(path).parents))),
        "hidden": [path for path in hidden if os.path.isdir(path)],
        "shown": sorted(path for path in packages if os.path.dirname(path) in hidden),
    }
