"""One confined process with all its descendants: started, spoken to through pipes, and ended without remains."""

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
OVER_MEMORY = "its processes together took more memory than they may"
"""Among a sandbox's `messages` where that has ended it."""


@dataclass(frozen=True)
class Limits:
    """What a sandbox may take; CPU time is the program's own to limit."""

    memory_bytes: int = 1 << 30
    """Addresses of each process."""
    resident_bytes: int = 3 << 29
    """Memory of all processes together. Beyond it all are ended: a look every 0.1 s, so by about 100 MB too late."""
    processes: int = 32
    """Processes at a time; threads count, too, except under sandlock."""
    descriptors: int = 128
    """Open files of each process."""
    scratch_bytes: int = 64 << 20
    """Files in the scratch folder, in all."""


@dataclass(frozen=True)
class Layer:
    """What confines: one of `LAYERS` of sandbox_layers.py, or UNSAFE, which confines nothing."""

    name: str
    described: tuple[str, ...]
    """The parts that hold, with their versions, for a report."""


class Sandbox:
    """`python -P -s -S program`, confined.

    The program reads its own file or folder, Python's standard library, the system's shared libraries and five devices
    (/dev/null, zero, full, random, urandom). Of installed packages it reads those that it is given, through links in
    the folder `packages`, which it has to add to its path. Its current folder, empty at first, is the only one that it
    can write to. It has no environment but a hash seed, no network, no /proc, and nobody's rights.

    `stdin` is a stream socket, which can bring it descriptors; `stdout` is an unbuffered pipe. Standard error is a pipe
    that is read at the end only, for `messages`: more than the 64 KiB that fit in it block the writer. `folder` is the
    sandbox's own outside, gone after `stop`.

    Args:
        layer: from `choose_layer`.
        program: a file, or a folder with __main__.py in it.
        limits: what all of it may take.
        installed: names of distributions. It may import those that are installed, and what they require.

    Raises:
        OSError: no process could be started. A confinement that fails shows by the end of `stdout`.
    """

    def __init__(self, layer: Layer, program: Path, limits: Limits = Limits(), installed: Iterable[str] = ()) -> None:
        self.layers = list(layer.described)
        self.folder = Path(tempfile.mkdtemp(prefix="codegen-sandbox-")).resolve()
        # Others may come to it, since root's programs are not root's.
        self.folder.chmod(0o711)
        (self.folder / "scratch").mkdir()
        self.packages = self.folder / "packages"
        self.packages.mkdir()
        importable = _files_of(installed)
        for name, path in importable.items():
            (self.packages / name).symlink_to(path)
        leash, self._leash = os.pipe()
        self.stdin, stdin = socket.socketpair()
        settings = {
            "inside": False,
            "own_quarters": True,
            "layer": layer.name,
            "leash": leash,
            "python": _python(),
            "program": str(program.resolve()),
            "scratch": str(self.folder / "scratch"),
            "packages": _packages(),
            "over_memory": OVER_MEMORY,
            "bwrap": shutil.which("bwrap"),
            "limits": asdict(limits),
            **_allowed(program.resolve(), [str(self.packages), *importable.values()]),
        }
        try:
            self._keeper = subprocess.Popen(
                [_python(), "-I", "-S", str(_CONFINEMENT), json.dumps(settings)],
                bufsize=0,
                stdin=stdin.fileno(),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(leash,),
                env=None if layer.name == "UNSAFE" else {"HOME": "/"},
                cwd="/",
                start_new_session=True,
            )
        except OSError:
            os.close(self._leash)
            self.stdin.close()
            shutil.rmtree(self.folder)
            raise
        finally:
            os.close(leash)
            stdin.close()
        assert self._keeper.stdout and self._keeper.stderr
        self.stdout: BinaryIO = self._keeper.stdout  # pyright: ignore[reportAttributeAccessIssue]
        self._stderr = self._keeper.stderr
        self._messages = ""

    @property
    def pid(self) -> int:
        """The process that keeps the sandbox; its end is the sandbox's."""
        return self._keeper.pid

    def stop(self) -> None:
        """Ends every process of it, at once, and removes its scratch folder. A second call does nothing."""
        if self._leash < 0:
            return
        # A byte, since a process forked from this one may hold the leash's end open.
        with contextlib.suppress(BrokenPipeError):
            os.write(self._leash, b".")
        self._keeper.wait()
        os.close(self._leash)
        self._leash = -1
        os.set_blocking(self._stderr.fileno(), False)
        self._messages = (self._stderr.read(1 << 16) or b"")[-_MESSAGE_BYTES:].decode(errors="replace")
        for stream in (self.stdin, self.stdout, self._stderr):
            stream.close()
        shutil.rmtree(self.folder)

    @property
    def messages(self) -> str:
        """The end of what came on standard error; empty before `stop`."""
        return self._messages

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _python() -> str:
    # Of a virtual environment's Python, which is a link, the interpreter itself.
    return os.path.realpath(sys.executable)


def _packages() -> str:
    """The folder that sandlock is installed in, for the keeper, which knows of no packages; empty where it is not."""
    found = importlib.util.find_spec("sandlock")
    return str(Path(found.origin).parents[1]) if found and found.origin else ""


def _files_of(distributions: Iterable[str]) -> dict[str, str]:
    """What lies in the folder of installed packages for these and all that they require, where it is: paths by name."""
    paths, left, seen = dict[str, str](), list(distributions), set[str]()
    while left:
        name = left.pop()
        if name in seen:
            continue
        seen.add(name)
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found = importlib.metadata.distribution(name)
            left += [re.split(r"[^\w.-]", line)[0] for line in found.requires or () if "extra ==" not in line]
            names = {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}
            paths |= {name: os.path.realpath(str(found.locate_file(name))) for name in names}
    return dict(sorted(paths.items()))


def _allowed(program: Path, packages: Iterable[str]) -> dict[str, list[str]]:
    """What may be read, and which folders in it may not: those of installed packages, where solutions could lie.

    "shown" is what may be read inside of these nevertheless.
    """
    paths = sysconfig.get_paths(vars={"base": sys.base_prefix, "platbase": sys.base_exec_prefix})
    standard = list(dict.fromkeys(os.path.realpath(paths[name]) for name in ("stdlib", "platstdlib")))
    hidden = [f"{folder}/{name}" for folder in standard for name in ("site-packages", "dist-packages")]
    # The interpreter as a shared library, where it is one.
    shared = Path(sysconfig.get_config_var("LIBDIR") or "/", sysconfig.get_config_var("INSTSONAME") or "none")
    named = {*_LIBRARIES, "/etc/ld.so.cache", *standard, _python(), str(_CONFINEMENT), str(program), str(shared)}
    named = {path for path in named.union(packages) if os.path.exists(path)}
    return {
        "readable": sorted(path for path in named if named.isdisjoint(map(str, Path(path).parents))),
        "hidden": [path for path in hidden if os.path.isdir(path)],
        "shown": sorted(path for path in packages if os.path.dirname(path) in hidden),
    }
