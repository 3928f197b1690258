"""The settings of glibc's malloc on CPUs."""

import ctypes
import logging
import platform

from codegen_jax.distributed import is_first

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # malloc.h
NEVER = -1
LARGEST_BLOCK = 32 * 2**20  # older versions of glibc allow no larger threshold

log = logging.getLogger(__name__)


def keep_freed_blocks(of_any_size: bool = False) -> None:
    """On a CPU, make malloc keep freed blocks instead of returning them to the system.

    XLA's matrix products allocate scratch space at each call, and the kernel would clear its pages each time.

    Args:
        of_any_size: also keep blocks of over 32 MiB, such as the buffer of a training step on one device. Programs then
            run in the thread that calls them, so that a step's buffer is free when the next one is allocated. This
            needs a JAX that has not been used yet.
    """
    import jax  # not at the top: it takes a third of a second

    if of_any_size:
        jax.config.update("jax_cpu_enable_async_dispatch", False)
    if jax.default_backend() == "cpu" and platform.libc_ver()[0] == "glibc":
        libc, sizes = ctypes.CDLL(None), "of any size" if of_any_size else "of up to 32 MiB"
        limit = (M_MMAP_MAX, 0) if of_any_size else (M_MMAP_THRESHOLD, LARGEST_BLOCK)
        if libc.mallopt(*limit) and libc.mallopt(M_TRIM_THRESHOLD, NEVER) and is_first():
            log.info(f"malloc keeps freed blocks {sizes}, which saves time on CPUs")
