"""The settings of glibc's malloc on CPUs."""

import ctypes
import logging
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGEST_BLOCK = 32 * 2**20  # threads other than the first keep no larger ones
ALL = 2**31 - 1

log = logging.getLogger(__name__)


def keep_freed_blocks(of_any_size: bool = False) -> None:
    """On a CPU, make malloc keep freed blocks instead of returning them to the system.

    XLA's matrix products allocate scratch space at each call, and the kernel would clear its pages each time.

    Args:
        of_any_size: also keep blocks of over 32 MiB, such as the buffer of a training step. Programs then run in the
            thread that calls them, since malloc maps such blocks of other threads; JAX must not have been used yet.
    """
    import jax  # not at the top: it takes a third of a second

    if of_any_size:
        jax.config.update("jax_cpu_enable_async_dispatch", False)
    if jax.default_backend() == "cpu" and platform.libc_ver()[0] == "glibc":
        settings = {M_TRIM_THRESHOLD: ALL, M_MMAP_THRESHOLD: ALL if of_any_size else LARGEST_BLOCK}
        libc = ctypes.CDLL(None)
        if all([libc.mallopt(*setting) for setting in settings.items()]):
            sizes = "of any size" if of_any_size else "of up to 32 MiB"
            log.info(f"malloc keeps freed blocks {sizes}, which saves time on CPUs")
