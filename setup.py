"""What setup.cfg cannot say: `configs/` is installed as the data of `codegen_jax.configs`, and old Pythons are refused.

pip checks python_requires too, but for a checkout it may first fail on a dependency without wheels for that Python.
"""

import sys

from setuptools import find_packages, setup

if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit(f"codegen_jax needs Python 3.11 or later; this is {'.'.join(map(str, sys.version_info[:3]))}")

setup(
    packages=[*find_packages(include=["codegen_jax*"]), "codegen_jax.configs"],
    package_dir={"codegen_jax.configs": "configs"},
)
