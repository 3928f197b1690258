"""What a layer is tried with: prints `held` where neither a file nor a socket is to be had."""

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
