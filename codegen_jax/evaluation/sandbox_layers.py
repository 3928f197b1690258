"""Choose the sandbox layer for this machine by trying to run each, and report how to fix those that fail."""

import ctypes
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
from pathlib import Path

from codegen_jax.errors import UserError
from codegen_jax.evaluation.sandbox import Layer, Sandbox

LAYERS = ("sandlock", "bubblewrap", "namespaces")
"""Strictest first; `auto` takes the first that runs."""

_PROBE = Path(__file__).with_name("confinement") / "probe.py"
_LANDLOCK_OF_SANDLOCK = 6
_LANDLOCK_CREATE_RULESET = 444
_NO_USER_NAMESPACES = (
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "sysctl kernel.apparmor_restrict_unprivileged_userns=0",
    ),
    ("/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"),
    ("/proc/sys/user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=10000"),
)


def choose_layer(name: str = "auto", unsafe: bool = False) -> Layer:
    """The layer called `name`, or for "auto" the first of `LAYERS` that runs on this machine.

    With `unsafe`, a layer that confines nothing.

    Raises:
        UserError: if there is no such layer or none runs; the message says why and how to fix it.
    """
    if unsafe:
        return Layer("UNSAFE", ("UNSAFE: nothing confines the programs",))
    if name not in ("auto", *LAYERS):
        raise UserError(f"sandbox: one of auto, {', '.join(LAYERS)}, not {name!r}")
    reasons = []
    for candidate in LAYERS if name == "auto" else (name,):
        reason = _missing(candidate) or _tried(candidate)
        if not reason:
            return Layer(candidate, _described(candidate))
        reasons.append(f"{candidate} does not run ({reason})")
    raise UserError(f"sandbox: {'; '.join(reasons)}")


def _missing(name: str) -> str:
    """A missing requirement of the layer; "" if none is missing, so it is worth trying."""
    if platform.system() != "Linux" or platform.machine() not in ("x86_64", "aarch64"):
        return f"it needs Linux on x86_64 or aarch64, this is {platform.system()} on {platform.machine()}"
    if name == "sandlock" and importlib.util.find_spec("sandlock") is None:
        return "pip install 'codegen_jax[evaluate]'"
    if name == "sandlock" and _landlock() < _LANDLOCK_OF_SANDLOCK:
        here = f"Linux {platform.release()} has version {_landlock()}"
        return f"it needs Landlock of version {_LANDLOCK_OF_SANDLOCK}, Linux 6.12 or later; {here}"
    if name == "bubblewrap" and shutil.which("bwrap") is None:
        return "apt install bubblewrap, or dnf; the package of that name on PyPI is another program"
    if name == "namespaces" and _landlock() < 1:
        return f"it needs Landlock, Linux 5.13 or later; Linux {platform.release()} has none of it, or it is off"
    return ""


def _tried(name: str) -> str:
    """Run a probe under the layer. Returns what went wrong; "" if the layer confined it."""
    with Sandbox(Layer(name, ()), _PROBE) as sandbox:
        said = sandbox.stdout.read().decode(errors="replace").strip()
    if said == "held":
        return ""
    last = (sandbox.messages.strip().splitlines() or ["it ended without a word"])[-1]
    mends = [mend for path, value, mend in _NO_USER_NAMESPACES if _setting(path) == value]
    return (said or last) + "".join(f"; as root: {mend}" for mend in mends)


def _setting(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _described(name: str) -> tuple[str, ...]:
    if name == "sandlock":
        version = importlib.metadata.version("sandlock")
    elif name == "bubblewrap":
        version = subprocess.run(["bwrap", "--version"], capture_output=True, text=True).stdout.split()[-1]
    else:
        version = platform.release()
    landlock = (f"Landlock ABI {_landlock()}",) if _landlock() else ()
    return (f"{name} {version}", *landlock, "seccomp", *(("user nobody",) if os.getuid() == 0 else ()))


def _landlock() -> int:
    """The kernel's Landlock ABI version; 0 if unavailable."""
    return max(0, ctypes.CDLL(None).syscall(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(1)))
