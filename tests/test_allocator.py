"""The allocator's setting keeps pages: what is freed is allocated again without page faults."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource, sys
from codegen_jax.allocator import keep_freed_blocks
size = 30 << 20 if sys.argv[1] == "small" else 300 << 20
if sys.argv[2] == "kept":
    keep_freed_blocks(of_any_size=sys.argv[1] == "large")
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
def allocate_and_free():
    blocks = [libc.malloc(size) for _ in range(3)]
    for block in blocks:
        ctypes.memset(block, 1, size)
    for block in blocks:
        libc.free(block)
for _ in range(3):
    allocate_and_free()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    allocate_and_free()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has this setting")
@pytest.mark.parametrize("size", ["small", "large"])
def test_freed_blocks_are_allocated_again_without_page_faults(size):
    faults = {
        name: int(subprocess.run([sys.executable, "-c", PROGRAM, size, name], capture_output=True, check=True).stdout)
        for name in ("kept", "returned")
    }
    assert faults["kept"] < 100 and faults["returned"] > 10_000, faults
