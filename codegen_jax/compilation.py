"""On-disk cache of compiled programs, so a restart does not recompile."""

import hashlib
import platform
from pathlib import Path

FOLDER = "~/.cache/codegen_jax"


def use_compilation_cache() -> None:
    """Cache compiled programs in ~/.cache/codegen_jax unless a cache folder is already set (JAX_COMPILATION_CACHE_DIR).

    CPU programs may use instructions that another CPU lacks, so each kind of CPU has its own folder.
    """
    import jax  # not at the top: codegen-jax doctor reads FOLDER even if JAX is broken

    if jax.config.jax_compilation_cache_dir:  # pyright: ignore
        return
    folder = Path(FOLDER).expanduser()
    if jax.default_backend() == "cpu":
        cpuinfo = Path("/proc/cpuinfo")
        lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
        flags = next((line for line in lines if line.startswith("flags")), platform.processor())
        folder /= f"cpu-{hashlib.sha256(flags.encode()).hexdigest()[:8]}"
    jax.config.update("jax_compilation_cache_dir", str(folder))
