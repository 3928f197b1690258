"""On-disk cache of compiled programs, so a restart does not recompile; and how many programs a process compiles."""

import functools
import hashlib
import platform
from pathlib import Path

FOLDER = "~/.cache/codegen_jax"
# of /proc/cpuinfo, on x86 and on ARM; LLVM chooses instructions and their order by these
CPU_FIELDS = ("vendor_id", "cpu family", "model", "flags", "CPU implementer", "CPU part", "Features")


def use_compilation_cache() -> None:
    """Cache compiled programs in ~/.cache/codegen_jax unless a cache folder is already set (JAX_COMPILATION_CACHE_DIR).

    CPU programs are compiled for one model of CPU and may use instructions that another lacks, so each has its folder.
    """
    import jax  # not at the top: codegen-jax doctor reads FOLDER even if JAX is broken

    if jax.config.jax_compilation_cache_dir:  # pyright: ignore
        return
    folder = Path(FOLDER).expanduser()
    if jax.default_backend() == "cpu":
        cpuinfo = Path("/proc/cpuinfo")
        first_core = cpuinfo.read_text().split("\n\n")[0].splitlines() if cpuinfo.exists() else []
        fields = [line for line in first_core if line.partition("\t")[0] in CPU_FIELDS]
        model = "\n".join(fields) or platform.processor()
        folder /= f"cpu-{hashlib.sha256(model.encode()).hexdigest()[:8]}"
    jax.config.update("jax_compilation_cache_dir", str(folder))


@functools.cache
def compilations() -> list[str]:
    """A list to which JAX's name of each program is added when this process compiles it or reads it from the cache.

    >>> before = len(compilations())
    >>> model = codegen_jax.load("runs/double")
    >>> text = model.generate("def double(x):")
    >>> len(compilations()) > before
    True
    """
    import jax

    names: list[str] = []

    def listen(event: str, duration_secs: float, **details: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(str(details.get("fun_name")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    return names
