"""Importing the package, and what works before any dependency is imported: help and errors on an old Python."""

import ast
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import codegen_jax

ROOT = Path(__file__).parents[1]
LIGHT = {"codegen_jax", "tqdm", "docstring_parser"}  # 10 ms; NumPy alone takes 100


def python(program: str) -> str:
    """Run a program in a process that has imported nothing; return its last line."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


IMPORTED = "print(sorted({name.partition('.')[0] for name in sys.modules} - before - sys.stdlib_module_names))"
BEFORE = "import sys; before = {name.partition('.')[0] for name in sys.modules}"


def test_importing_the_package_imports_no_dependency():
    names = "CodeGenConfig, MeshConfig, UserError, __version__, load"
    assert python(f"{BEFORE}\nfrom codegen_jax import {names}\n{IMPORTED}") == "['codegen_jax']"
    assert all(hasattr(codegen_jax, name) for name in codegen_jax.__all__)


HELP = """
import contextlib, io
from codegen_jax.cli import main, make_parser

def verbs(parser, words=()):
    yield [*words]
    for action in parser._actions:
        for word, inner in (action.choices or {}).items() if hasattr(action, "add_parser") else ():
            model = ["MODEL"] * (words == ("evaluate",))
            yield from verbs(inner, (*words, *model, word))

every = [words for words in verbs(make_parser()) if words != ["train"]]  # lists every field, which takes jsonargparse
assert ["evaluate", "MODEL", "harness"] in every and ["config", "show"] in every
for words in [*([*words, "--help"] for words in every), ["--version"]]:
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        main(words)
    assert printed.getvalue(), words
"""


def test_help_imports_no_large_dependency():
    assert set(ast.literal_eval(python(f"{BEFORE}\n{HELP}\n{IMPORTED}"))) <= LIGHT


def test_an_error_on_an_old_python_names_the_required_version():
    pretend = "import sys; sys.version_info = (3, 9, 2, 'final', 0)"
    program = f"{pretend}\ntry:\n    import codegen_jax\nexcept ImportError as error:\n    print(error)"
    assert python(program) == "codegen_jax needs Python 3.11 or later; this is 3.9.2"


@pytest.mark.parametrize("file", ["codegen_jax/__init__.py", "setup.py"])
def test_files_that_an_old_python_reads_have_valid_syntax_for_it(file):
    ast.parse((ROOT / file).read_text(), feature_version=(3, 6))


def test_the_scripts_refuse_an_old_python_before_they_make_an_environment(tmp_path):
    for name in ("scripts", "codegen_jax"):
        (tmp_path / name).symlink_to(ROOT / name)
    old = tmp_path / "python3.9"
    old.write_text(f'#!/bin/sh\n{{ echo "import sys; sys.version_info = (3, 9, 2)"; cat; }} | {sys.executable} "$@"\n')
    old.chmod(0o755)
    done = subprocess.run(
        [tmp_path / "scripts/make_venv"], capture_output=True, text=True, env=os.environ | {"PYTHON": str(old)}
    )
    assert done.returncode == 1 and not (tmp_path / ".venv").exists()
    assert done.stderr.startswith("codegen_jax needs Python 3.11 or later; this is 3.9.2; set PYTHON"), done.stderr


def test_the_wheel_has_every_module_and_config_and_no_tests(tmp_path):
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("codegen_jax", "configs", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = "from setuptools import build_meta\nbuild_meta.build_wheel('dist')\nbuild_meta.build_sdist('dist')"
    subprocess.run([sys.executable, "-c", build], cwd=tmp_path, check=True, capture_output=True)
    (wheel,), (sdist,) = (tmp_path / "dist").glob("*.whl"), (tmp_path / "dist").glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as file:
        packed = set(file.namelist())
    with tarfile.open(sdist) as file:
        sources = {name.partition("/")[2] for name in file.getnames()}
    package = {str(path.relative_to(tmp_path)) for path in (tmp_path / "codegen_jax").rglob("*") if path.is_file()}
    configs = {f"configs/{path.name}" for path in (ROOT / "configs").glob("*.yaml")}
    metadata = {name for name in packed if ".dist-info/" in name}
    assert packed - metadata == package | {f"codegen_jax/{name}" for name in configs}
    assert "codegen_jax/py.typed" in packed and any(name.endswith("licenses/LICENSE") for name in metadata)
    assert package | configs <= sources and not any(name.startswith("tests") for name in sources)
