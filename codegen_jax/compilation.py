"""Compiled programs are kept on disk, so that a second start does not compile again."""

from pathlib import Path

import jax


def use_compilation_cache() -> None:
    """Keep an accelerator's compiled programs in ~/.cache/codegen_jax, unless JAX_COMPILATION_CACHE_DIR says where.

    Programs for a CPU compile fast and may hold instructions that another CPU lacks.
    """
    if jax.default_backend() != "cpu" and not jax.config.jax_compilation_cache_dir:  # pyright: ignore
        jax.config.update("jax_compilation_cache_dir", str(Path("~/.cache/codegen_jax").expanduser()))
