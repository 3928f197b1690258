"""`python -m codegen_jax` runs the command `codegen-jax`."""

from codegen_jax.cli import main

main()
