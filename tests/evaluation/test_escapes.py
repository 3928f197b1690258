"""Escape attempts: all succeed without a sandbox, none succeeds under any layer."""

import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from codegen_jax.evaluation.sandbox import Limits, Sandbox
from codegen_jax.evaluation.sandbox_layers import LAYERS, choose_layer
from tests.evaluation import escapes

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="the attempts use x86_64 system call numbers")

NOBODY = 65534


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """Targets that a program without a sandbox can reach, whichever user it runs as."""
    folder = tmp_path_factory.mktemp("outside")
    for ancestor in (folder, folder.parent, folder.parent.parent):
        ancestor.chmod(0o755)
    for name in ("secret", "renamed"):
        (folder / name).write_text("x" * 100)
    program = folder / "program" / "escapes.py"
    program.parent.mkdir()
    shutil.copy(escapes.__file__, program)
    folder.chmod(0o777)
    servers = [socket.create_server(("127.0.0.1", 0)), socket.create_server(("::1", 0), family=socket.AF_INET6)]
    tcp, tcp6 = (server.getsockname()[1] for server in servers)
    udp = socket.socket(type=socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", 0))
    unix, abstract = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    unix.bind(str(folder / "socket"))
    (folder / "socket").chmod(0o777)
    name = f"escapes-{os.getpid()}"
    abstract.bind(f"\0{name}")
    datagrams = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    datagrams.bind(f"\0{name}-datagrams")
    unix.listen(100), abstract.listen(100)
    # Runs as the same user as a sandboxed program started by root, so permissions don't hide a layer's failure.
    user = NOBODY if os.getuid() == 0 else None
    victim = subprocess.Popen(["sleep", "1000"], user=user)
    facts = {
        "program": str(program),
        "secret": str(folder / "secret"),
        "renamed": str(folder / "renamed"),
        "home": str(Path.home()),
        "repository": str(Path(__file__)),
        "packages": sysconfig.get_path("platstdlib", vars={"platbase": sys.base_exec_prefix}) + "/site-packages",
        "parent": os.getpid(),
        "victim": victim.pid,
        "tcp": tcp,
        "tcp6": tcp6,
        "udp": udp.getsockname()[1],
        "unix": str(folder / "socket"),
        "abstract": name,
        "abstract_datagram": f"{name}-datagrams",
    }
    yield facts
    victim.kill()
    victim.wait()
    for opened in (*servers, udp, unix, abstract, datagrams):
        opened.close()


@pytest.fixture(scope="module")
def reports(outside):
    """A function that returns the attempts' results under a layer, and whether the outside changed; each runs once."""
    known = {}
    folder = Path(outside["secret"]).parent

    def state():
        return {path.name: (path.stat().st_mode, path.stat().st_size) for path in folder.iterdir()}

    def of(name):
        if name not in known:
            before = state()
            layer = choose_layer(name, unsafe=name == "UNSAFE")
            os.environ["SECRET_OF_THE_PARENT"] = "secret"
            # with an installed package that may be read, as for MTPB's programs
            with Sandbox(layer, Path(outside["program"]), Limits(), installed=("numpy",)) as sandbox:
                sandbox.stdin.sendall(json.dumps(outside).encode() + b"\n")
                text = b"".join(iter(lambda: sandbox.stdout.read(1 << 16), b""))
            del os.environ["SECRET_OF_THE_PARENT"]
            assert text, sandbox.messages
            known[name] = json.loads(text) | {"outside unchanged": state() == before}
        return known[name]

    return of


@pytest.mark.parametrize("name", escapes.ATTEMPTS)
@pytest.mark.parametrize("layer", LAYERS)
def test_no_attempt_succeeds_under_any_layer(reports, layer, name):
    achieved, text = reports(layer)[name]
    assert not achieved, text


@pytest.mark.parametrize("name", escapes.ATTEMPTS)
def test_the_same_attempt_succeeds_without_a_sandbox(reports, name):
    achieved, text = reports("UNSAFE")[name]
    free = escapes.ATTEMPTS[name][1]
    assert achieved or free == "some" or (free == "root" and os.getuid() != 0), text


@pytest.mark.parametrize("layer", (*LAYERS, "UNSAFE"))
def test_the_attempts_change_nothing_outside(reports, layer):
    assert reports(layer)["outside unchanged"] == (layer != "UNSAFE")
