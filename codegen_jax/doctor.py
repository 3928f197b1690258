"""Facts about this installation and machine for a bug report; an error message replaces a fact that is unavailable."""

import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from packaging.requirements import Requirement

from codegen_jax import __version__
from codegen_jax.chips import GIB
from codegen_jax.compilation import FOLDER
from codegen_jax.storage import is_remote

Facts = dict[str, str | dict[str, str]]

DISTRIBUTION = "codegen_jax"
DEVELOPMENT = "test"  # the extra for this project's own tests
BACKEND_SECONDS = 30.0  # time limit for starting the backend; one that waits for other hosts never starts
WALK_SECONDS = 1.5  # time limit for measuring a cache
VARIABLES = re.compile(
    "(JAX|XLA|LIBTPU|TPU|PJRT|MEGASCALE|HF|HUGGING_?FACE|CODEGEN|NCCL|SLURM_N|OMP)_.*"
    "|CUDA_VISIBLE_DEVICES|LD_LIBRARY_PATH|LD_PRELOAD|NO_COLOR|TERM|TRANSFORMERS_OFFLINE|TOKENIZERS_PARALLELISM"
)
SECRET = re.compile("(^|_)(TOKEN|KEY|SECRET|PASSWORD|CREDENTIALS)(_|$)")
# run in a child process, since it may crash or hang
BACKEND = """
import json
try:
    import jax
    devices = jax.devices()
    kinds = [device.device_kind for device in devices]
    stats = [(device.memory_stats() or {}) for device in jax.local_devices()]
    found = {
        "backend": jax.default_backend(),
        "version": devices[0].client.platform_version,
        "kinds": {kind: kinds.count(kind) for kind in kinds},
        "processes": jax.process_count(),
        "limits": [one["bytes_limit"] for one in stats if "bytes_limit" in one],
        "in_use": [one["bytes_in_use"] for one in stats if "bytes_in_use" in one],
    }
except Exception as error:
    found = {"error": f"{type(error).__name__}: {error}"}
print(json.dumps(found))
"""


def gather(environment: Mapping[str, str]) -> Facts:
    """Collect everything. It takes a few seconds, changes nothing, and raises no exception.

    Args:
        environment: the variables as the user set them, before the command added its own.
    """
    with ThreadPoolExecutor(1) as pool:
        backend = pool.submit(devices)  # runs while the rest is collected
        facts: Facts = {
            "python": f"{platform.python_version()}, {sys.executable}",
            "platform": _attempt(platform.platform),
            "cpus": _attempt(cpus),
            "memory": _attempt(memory),
            "sandbox": _attempt(sandbox),
            "hub": _attempt(hub),
            "dependencies": _attempts(dependencies),
            "extras": _attempts(extras),
            "caches": {
                "compiled programs": _attempt(lambda: cache(compilation_cache())),
                "hub": _attempt(lambda: cache(hub_cache())),
            },
            "free disk": _attempts(free_disk),
            "environment": variables(environment),
        }
        started = _attempts(backend.result)
    platforms = os.environ.get("JAX_PLATFORMS")
    if platforms and "JAX_PLATFORMS" not in environment:
        started["platforms"] = f"{platforms}, chosen by codegen-jax: libtpu is installed, but there is no TPU"
    return {"codegen_jax": _attempt(codegen_jax), **started, **facts}


def _attempt(find: Callable[[], str]) -> str:
    try:
        return find()
    except Exception as error:  # one missing fact must not hide the others
        return _failure(error)


def _attempts(find: Callable[[], dict[str, str]]) -> dict[str, str]:
    try:
        return find()
    except Exception as error:
        return {"unknown": _failure(error)}


def _failure(error: Exception) -> str:
    return f"failed: {type(error).__name__}: {' '.join(str(error).split())}"


def codegen_jax() -> str:
    """The version, with the commit if the package is run from a git checkout."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return f"{__version__}, {root}"
    command = ["git", "-C", str(root), "describe", "--always", "--dirty=, modified", "--exclude=*", "--abbrev=12"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=5)
    return f"{__version__}, git {(found.stdout or found.stderr).splitlines()[0]}, {root}"


def devices(seconds: float = BACKEND_SECONDS) -> dict[str, str]:
    """JAX's backend and devices, or the reason why it did not start."""
    # leave the memory of a GPU to a run that may be using it
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    command = [sys.executable, "-c", BACKEND]
    try:
        child = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"backend": f"failed: did not start within {seconds:g} s"}
    try:
        found = json.loads(child.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        last = (child.stderr.strip().splitlines() or ["no message"])[-1]
        return {"backend": f"failed with exit code {child.returncode}: {last}"}
    if "error" in found:
        return {"backend": f"failed: {' '.join(found['error'].split())}"}
    kinds = ", ".join(f"{kind} x {count}" for kind, count in found["kinds"].items())
    limits, in_use = found["limits"], found["in_use"]
    sizes = f"{min(limits) / GIB:.1f} GiB each, up to {max(in_use) / GIB:.1f} GiB in use" if limits else "not reported"
    return {
        "backend": " ".join(f"{found['backend']} ({found['version']})".split()),
        "devices": f"{kinds}; processes: {found['processes']}",
        "device memory": sizes,
    }


def cpus() -> str:
    parts = [f"{os.cpu_count()}"]
    if hasattr(os, "sched_getaffinity"):
        parts.append(f"{len(os.sched_getaffinity(0))} usable by this process")
    limits = [value.partition(" ") for value in control_group("cpu.max", "cpu/cpu.cfs_quota_us")]
    if limits:
        parts.append(f"cgroup limit {min(int(quota) / int(period or 100_000) for quota, _, period in limits):g}")
    return ", ".join(parts)


def memory() -> str:
    parts = [f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / GIB:.1f} GiB"]
    if (meminfo := Path("/proc/meminfo")).exists():
        available = re.search(r"MemAvailable: *(\d+)", meminfo.read_text())
        parts += [f"{int(available[1]) / 2**20:.1f} GiB available"] if available else []
    limits = [int(value) for value in control_group("memory.max", "memory/memory.limit_in_bytes")]
    if limits and min(limits) < 2**60:  # cgroup version 1 reports no limit as a huge number
        parts.append(f"cgroup limit {min(limits) / GIB:.1f} GiB")
    return ", ".join(parts)


def control_group(name: str, old_name: str, root: str = "/sys/fs/cgroup", own: str = "/proc/self/cgroup") -> list[str]:
    """The limits set by this process's control group and its ancestors; in version 1, by the root group."""
    lines = Path(own).read_text().splitlines() if Path(own).exists() else []
    path = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    folders = [Path(root, path), *Path(root, path).parents]
    files = [folder / name for folder in folders if folder.is_relative_to(root)] + [Path(root, old_name)]
    values = [file.read_text().strip() for file in files if file.exists()]
    return [value for value in values if not value.startswith(("max", "-1"))]


def sandbox() -> str:
    """The first sandbox layer that works on this machine, found by trying each."""
    from codegen_jax.errors import UserError
    from codegen_jax.evaluation.sandbox_layers import choose_layer

    try:
        return ", ".join(choose_layer().description)
    except UserError as error:
        return f"none: {str(error).removeprefix('sandbox: ')}"


def hub() -> str:
    from huggingface_hub import constants

    return f"{'offline' if constants.HF_HUB_OFFLINE else 'online'}, {without_password(constants.ENDPOINT)}"


def dependencies() -> dict[str, str]:
    """The installed version of each requirement of the package, and the bound if it is not satisfied."""
    found = {"jaxlib": _attempt(lambda: importlib.metadata.version("jaxlib"))}
    for one in requirements(DISTRIBUTION, ""):
        found[one.name] = installed(one)[1]
    return found


def extras() -> dict[str, str]:
    """Each extra of the package: what it installed, or what is missing and how to install it."""
    found = {}
    for extra in importlib.metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []:
        if extra == DEVELOPMENT:
            continue
        states = [(one.name, *installed(one)) for one in closure(DISTRIBUTION, extra)]
        bad = [f"{name} {version}" for name, good, version in states if not good]
        found[extra] = (
            f"incomplete: {', '.join(bad)}; pip install '{DISTRIBUTION}[{extra}]'"
            if bad
            else f"complete: {', '.join(f'{name} {version}' for name, _, version in states)}"
        )
    return found


def requirements(distribution: str, extra: str) -> Iterator[Requirement]:
    """The requirements of a distribution on this platform; with an extra, only those that the extra adds."""
    for text in importlib.metadata.requires(distribution) or []:
        one = Requirement(text)
        always = one.marker is None or one.marker.evaluate({"extra": ""})
        if extra and one.marker is not None:
            wanted = not always and one.marker.evaluate({"extra": extra})
        else:
            wanted = always and not extra
        if wanted:
            yield one


def closure(distribution: str, extra: str) -> Iterator[Requirement]:
    """The requirements of an extra, including nested extras such as jax[tpu]."""
    for one in requirements(distribution, extra):
        yield one
        for theirs in one.extras:
            if installed(one)[0]:
                yield from closure(one.name, theirs)


def installed(requirement: Requirement) -> tuple[bool, str]:
    """Whether a requirement is satisfied, and its installed version in words."""
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return False, f"not installed, requires {requirement.specifier or 'any version'}"
    if requirement.specifier.contains(version, prereleases=True):
        return True, version
    return False, f"{version}, requires {requirement.specifier}"


def compilation_cache() -> str:
    return os.environ.get("JAX_COMPILATION_CACHE_DIR") or FOLDER


def hub_cache() -> str:
    from huggingface_hub import constants

    return constants.HF_HUB_CACHE


def cache(folder: str, seconds: float = WALK_SECONDS) -> str:
    """A folder with the number and size of its files, counted for a limited time."""
    path = Path(folder).expanduser()
    if is_remote(folder) or not path.is_dir():
        return f"{path}, not measured" if is_remote(folder) else f"{path}, does not exist"
    files, size, end, rest = 0, 0, time.monotonic() + seconds, ""
    folders = [os.fspath(path)]
    while folders:
        if time.monotonic() > end:
            rest = "at least "
            break
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif entry.is_file(follow_symlinks=False):
                    files, size = files + 1, size + entry.stat(follow_symlinks=False).st_size
    return f"{path}, {rest}{files:,} file(s), {size / 1e9:.2f} GB"


def free_disk() -> dict[str, str]:
    """Free space where the current folder, temporary files and the caches are."""
    folders = [os.curdir, tempfile.gettempdir()]
    for find in (compilation_cache, hub_cache):
        with suppress(Exception):  # reported under "caches"
            folders.append(find())
    found = {}
    for path in [Path(folder).expanduser().absolute() for folder in folders if not is_remote(folder)]:
        existing = next(one for one in (path, *path.parents) if one.exists())
        usage = shutil.disk_usage(existing)
        found[str(existing)] = f"{usage.free / 1e9:.1f} of {usage.total / 1e9:.1f} GB"
    return found


def variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that matter here, without the values of secrets."""
    shown = {name: value for name, value in sorted(environment.items()) if VARIABLES.fullmatch(name)}
    return {name: "set" if SECRET.search(name) else without_password(value) for name, value in shown.items()}


def without_password(text: str) -> str:
    """A text in which every URL's user and password are replaced by "set"."""
    return re.sub("//[^/@ ]*@", "//set@", text)
