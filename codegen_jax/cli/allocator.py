"""The settings of glibc's malloc on CPUs."""

import ctypes
import logging
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGEST_BLOCK = 32 * 2**20  # glibc allows no larger threshold
NEVER = 2**31 - 1

log = logging.getLogger(__name__)


def keep_freed_blocks() -> None:
    """On a CPU, make malloc keep freed blocks of up to 32 MiB instead of returning them to the system.

    XLA's matrix products allocate scratch space at each call, and the kernel would clear its pages each time.
    """
    import jax  # not at the top: it takes a third of a second

    if jax.default_backend() == "cpu" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        if libc.mallopt(M_MMAP_THRESHOLD, LARGEST_BLOCK) and libc.mallopt(M_TRIM_THRESHOLD, NEVER):
            log.info("malloc keeps freed blocks of up to 32 MiB, which saves time on CPUs")
