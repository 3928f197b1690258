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
"""Strictest first; `auto` selects the first that runs."""

_PROBE = Path(__file__).with_name("confinement") / "probe.py"
_MIN_LANDLOCK_FOR_SANDLOCK = 6
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
        UserError: if the layer is unknown or none runs; the message says why and how to fix it.
    """
    if unsafe:
        return Layer("UNSAFE", ("UNSAFE: nothing confines the programs",))
    if name not in ("auto", *LAYERS):
        raise UserError(f"sandbox: must be one of auto, {', '.join(LAYERS)}, got {name!r}")
    reasons = []
    for candidate in LAYERS if name == "auto" else (name,):
        reason = _missing(candidate) or _failure(candidate)
        if not reason:
            return Layer(candidate, _describe(candidate))
        reasons.append(f"{candidate} is unavailable ({reason})")
    raise UserError(f"sandbox: {'; '.join(reasons)}")


def _missing(name: str) -> str:
    """A missing requirement of the layer; "" if none is missing, so it is worth trying."""
    if platform.system() != "Linux" or platform.machine() not in ("x86_64", "aarch64"):
        return f"requires Linux on x86_64 or aarch64, but this is {platform.system()} on {platform.machine()}"
    if name == "sandlock" and importlib.util.find_spec("sandlock") is None:
        return "not installed: pip install 'codegen_jax[evaluate]'"
    if name == "sandlock" and _landlock() < _MIN_LANDLOCK_FOR_SANDLOCK:
        here = f"Linux {platform.release()} has ABI {_landlock()}"
        return f"requires Landlock ABI {_MIN_LANDLOCK_FOR_SANDLOCK} (Linux 6.12 or later), but {here}"
    if name == "bubblewrap" and shutil.which("bwrap") is None:
        return "not installed: apt or dnf install bubblewrap; the PyPI package of that name is a different program"
    if name == "namespaces" and _landlock() < 1:
        return f"requires Landlock (Linux 5.13 or later), which Linux {platform.release()} lacks or has disabled"
    return ""


def _failure(name: str) -> str:
    """Run a probe under the layer. Returns what went wrong; "" if the layer confined it."""
    with Sandbox(Layer(name, ()), _PROBE) as sandbox:
        printed = sandbox.stdout.read().decode(errors="replace").strip()
    if printed == "confined":
        return ""
    last_message = (sandbox.messages.strip().splitlines() or ["the probe ended without output"])[-1]
    fixes = [fix for path, value, fix in _NO_USER_NAMESPACES if _setting(path) == value]
    return (printed or last_message) + "".join(f"; as root: {fix}" for fix in fixes)


def _setting(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _describe(name: str) -> tuple[str, ...]:
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
