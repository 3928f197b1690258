"""A sandbox's lifetime, files, memory limits and choice of layer."""

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from codegen_jax.errors import UserError
from codegen_jax.evaluation import sandbox as sandbox_module
from codegen_jax.evaluation.sandbox import MEMORY_EXCEEDED, Limits, Sandbox
from codegen_jax.evaluation.sandbox_layers import LAYERS, choose_layer

ALL = (*LAYERS, "UNSAFE")
# Programs that do not end on their own; each prints "ready" once it is set up.
ENDLESS = {
    "loop in C": "print('ready', flush=True); sum(iter(int, 1))",
    "loop in re": "import re; print('ready', flush=True); re.match('(a*)*b', 'a' * 100)",
    "SIGTERM ignored": "import signal; signal.signal(15, signal.SIG_IGN); print('ready', flush=True); signal.pause()",
    "sleeping grandchildren": """
import os, time
for _ in range(3):
    if os.fork() == 0:
        os.fork()
        time.sleep(1000)
print('ready', flush=True)
time.sleep(1000)
""",
    "daemon": """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print('ready', flush=True)
        time.sleep(1000)
    os._exit(0)
os.wait()
time.sleep(1000)
""",
    "processes that replace themselves": """
import os, time
read, write = os.pipe()
ends = time.monotonic() + 100
print('ready', flush=True)
while time.monotonic() < ends:
    if os.fork():
        time.sleep(0.01)
        os._exit(0)
    os.setsid()
""",
}


@pytest.fixture(scope="module")
def layers():
    return {name: choose_layer(name, unsafe=name == "UNSAFE") for name in ALL}


def write(folder: Path, text: str) -> Path:
    path = folder / "program.py"
    path.write_text(text)
    return path


def output(sandbox: Sandbox) -> str:
    return b"".join(iter(lambda: sandbox.stdout.read(1 << 16), b"")).decode()


def alive(path: Path) -> int:
    """The number of processes with a path in their command line."""
    found = 0
    for process in Path("/proc").iterdir():
        try:
            found += process.name.isdigit() and str(path).encode() in (process / "cmdline").read_bytes()
        except OSError:
            continue
    return found


@pytest.mark.parametrize("endless", ENDLESS)
@pytest.mark.parametrize("layer", ALL)
def test_nothing_is_left_after_a_sandbox_is_stopped(layers, tmp_path, layer, endless):
    program = write(tmp_path, ENDLESS[endless])
    sandbox = Sandbox(layers[layer], program)
    assert sandbox.stdout.readline() == b"ready\n", sandbox.messages
    folder = sandbox.folder
    assert alive(program) > 1 and folder.exists()
    sandbox.stop()
    assert alive(program) == 0 and not folder.exists()
    sandbox.stop()


@pytest.mark.parametrize("layer", ALL)
def test_a_sandbox_ends_with_the_process_that_started_it(tmp_path, layer):
    program = write(tmp_path, ENDLESS["daemon"])
    text = """
import sys
from pathlib import Path
from codegen_jax.evaluation.sandbox import Sandbox
from codegen_jax.evaluation.sandbox_layers import choose_layer
sandbox = Sandbox(choose_layer(sys.argv[1], unsafe=sys.argv[1] == "UNSAFE"), Path(sys.argv[2]))
print(sandbox.stdout.readline().decode(), flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", text, layer, str(program)]
    # The killed process leaves its empty folder behind, so keep it in tmp_path.
    temporary = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=temporary) as parent:
        assert parent.stdout and parent.stdout.readline() == b"ready\n"
        parent.kill()
    deadline = time.monotonic() + 20
    while alive(program) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert alive(program) == 0


# Not under sandlock: there, if the supervisor is killed from outside, a daemon survives, still confined.
@pytest.mark.parametrize("layer", ("bubblewrap", "namespaces"))
def test_nothing_is_left_when_the_supervisor_is_killed(layers, tmp_path, layer):
    program = write(tmp_path, ENDLESS["daemon"])
    with Sandbox(layers[layer], program) as sandbox:
        assert sandbox.stdout.readline() == b"ready\n"
        os.kill(sandbox.pid, signal.SIGKILL)
        deadline = time.monotonic() + 20
        while alive(program) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert alive(program) == 0


@pytest.mark.parametrize("layer", ALL)
def test_a_program_communicates_through_pipes_that_support_select(layers, tmp_path, layer):
    with Sandbox(layers[layer], write(tmp_path, "print(input()[::-1], flush=True); input()")) as sandbox:
        assert not select.select([sandbox.stdout], [], [], 0.05)[0]
        sandbox.stdin.sendall(b"abc\n")
        assert select.select([sandbox.stdout], [], [], 20)[0]
        assert sandbox.stdout.read(100) == b"cba\n"


@pytest.mark.parametrize("layer", LAYERS)
def test_a_folder_can_run_and_read_itself_and_the_standard_library(layers, tmp_path, layer):
    tmp_path.chmod(0o755)
    (tmp_path / "data.txt").write_text("data")
    (tmp_path / "sibling.py").write_text("import decimal, json, sqlite3, ssl, zlib")
    text = "import sibling, os, sys; print(open(os.path.dirname(__file__) + '/data.txt').read(), sys.version)"
    (tmp_path / "__main__.py").write_text(text)
    with Sandbox(layers[layer], tmp_path) as sandbox:
        assert output(sandbox) == f"data {sys.version}\n"


@pytest.mark.parametrize("layer", LAYERS)
def test_only_the_given_installed_packages_can_be_read(layers, tmp_path, layer):
    """For example numpy, which may be in a virtual environment."""
    text = """
import sys
sys.path.append(input())
import numpy
print(numpy.arange(3).sum())
try:
    import pytest
except ImportError:
    print("refused")
"""
    with Sandbox(layers[layer], write(tmp_path, text), installed=("numpy", "not-installed")) as sandbox:
        sandbox.stdin.sendall(f"{sandbox.packages}\n".encode())
        assert output(sandbox).split() == ["3", "refused"], sandbox.messages


@pytest.mark.parametrize("layer", LAYERS)
def test_given_packages_can_be_read_although_their_neighbors_are_hidden(layers, tmp_path, layer, monkeypatch):
    """As when packages are installed into the system's Python."""
    hidden = [Path(folder) for folder in sandbox_module._allowed(Path("x"), [])["hidden"]]
    packages = sorted(path for folder in hidden for path in folder.iterdir() if (path / "__init__.py").is_file())
    if len(packages) < 2:
        pytest.skip("no packages next to the standard library")
    given, other = packages[:2]
    monkeypatch.setattr(sandbox_module, "_files_of", lambda _: {given.name: str(given)})
    text = f"""
for path in ({str(given / "__init__.py")!r}, {str(other / "__init__.py")!r}):
    try: open(path); print("read")
    except OSError: print("refused")
"""
    with Sandbox(layers[layer], write(tmp_path, text)) as sandbox:
        assert output(sandbox).split() == ["read", "refused"], sandbox.messages


@pytest.mark.parametrize("layer", LAYERS)
def test_the_current_folder_is_empty_and_writable(layers, tmp_path, layer):
    text = "import os, tempfile; print(os.listdir()); tempfile.TemporaryFile(); open('x', 'w'); print(os.listdir())"
    with Sandbox(layers[layer], write(tmp_path, text)) as sandbox:
        assert output(sandbox) == "[]\n['x']\n"


@pytest.mark.parametrize("layer", LAYERS)
def test_root_is_nobody_inside(layers, tmp_path, layer):
    with Sandbox(layers[layer], write(tmp_path, "import os; print(os.getresuid()[1], len(os.getgroups()))")) as sandbox:
        user, groups = output(sandbox).split()
    assert int(user) == (65534 if os.getuid() == 0 else os.getuid()) and (groups == "0" or os.getuid())


@pytest.mark.parametrize("layer", LAYERS)
def test_processes_that_together_use_too_much_memory_are_killed(layers, tmp_path, layer):
    text = """
import os, time
for _ in range(3):
    if os.fork() == 0:
        kept = bytearray(os.urandom(1)) * (60 << 20)
        time.sleep(1000)
time.sleep(1000)
"""
    with Sandbox(layers[layer], write(tmp_path, text), Limits(resident_bytes=120 << 20)) as sandbox:
        assert output(sandbox) == ""
    assert MEMORY_EXCEEDED in sandbox.messages


@pytest.mark.parametrize("layer", LAYERS)
def test_one_process_that_uses_too_much_memory_gets_a_memory_error(layers, tmp_path, layer):
    text = "try: bytearray(300 << 20)\nexcept MemoryError: print('MemoryError')"
    with Sandbox(layers[layer], write(tmp_path, text), Limits(memory_bytes=256 << 20)) as sandbox:
        assert output(sandbox) == "MemoryError\n"


def test_auto_selects_the_first_layer_that_runs():
    assert choose_layer("auto") == choose_layer(LAYERS[0])


def test_a_missing_layer_is_reported_with_its_fix(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(
        UserError, match=r"^sandbox: bubblewrap is unavailable \(not installed: apt or dnf install bubblewrap"
    ):
        choose_layer("bubblewrap")


def test_an_unknown_layer_is_refused():
    with pytest.raises(
        UserError, match=r"^sandbox: must be one of auto, sandlock, bubblewrap, namespaces, got 'docker'"
    ):
        choose_layer("docker")


def test_a_layer_that_fails_is_refused_with_the_reason(tmp_path, monkeypatch):
    """The layer's own program is one that fails."""
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho setting up uid map: Permission denied >&2; exit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"^sandbox: bubblewrap is unavailable"):
        choose_layer("bubblewrap")


@pytest.mark.parametrize("layer", LAYERS)
def test_a_program_may_change_the_modes_of_its_own_files(layers, tmp_path, layer):
    text = (
        "import os; open('x', 'w').close(); os.chmod('x', 0o600); os.utime('x', (1, 1)); print(os.stat('x').st_mtime)"
    )
    with Sandbox(layers[layer], write(tmp_path, text)) as sandbox:
        assert output(sandbox) == "1.0\n"
