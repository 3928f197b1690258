"""What setup.cfg cannot say: `configs/` is installed as the data of `codegen_jax.configs`."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["codegen_jax*"]), "codegen_jax.configs"],
    package_dir={"codegen_jax.configs": "configs"},
)
