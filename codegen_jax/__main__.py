"""`python -m codegen_jax` is the command `codegen-jax`."""

from codegen_jax.cli import main

main()
