"""The program that tests a layer: prints `held` if it can neither read a file nor open a socket."""

import socket
from pathlib import Path


def _got() -> list[str]:
    got = []
    for name, attempt in (("a file", Path("/etc/passwd").read_bytes), ("a socket", socket.socket)):
        try:
            attempt()
            got.append(name)
        except OSError:
            pass
    return got


print("held" if not _got() else f"its program got {' and '.join(_got())}")
