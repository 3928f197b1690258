"""How the command prints the library's messages, and what a program that imports the package sees of them."""

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

from tqdm import tqdm

from codegen_jax.cli.console import console
from codegen_jax.errors import RUN_LOG, Preempted, UserError, report

ROOT = Path(__file__).parents[2]


def test_a_runs_log_goes_to_stdout_and_all_else_to_stderr(capsys):
    with console():
        logging.getLogger(RUN_LOG).info("step 1")
        logging.getLogger("codegen_jax.inference").info("compiled")
        logging.getLogger("codegen_jax.weights").warning("odd")
        report(UserError("top_p: 2 is\n too much"))
        report(Preempted(signal.SIGTERM, 3))
    out, err = capsys.readouterr()
    assert out == "step 1\n"
    assert err.splitlines() == [
        "codegen-jax: compiled",
        "codegen-jax: warning: odd",
        "codegen-jax: error: top_p: 2 is too much",
        "codegen-jax: stopped: SIGTERM: saved after step 3; the same command resumes from there",
    ]


def test_a_message_stands_above_a_progress_bar(capsys):
    with console(), tqdm(total=2) as bar:
        logging.getLogger("codegen_jax.inference").info("compiled")
        bar.update()
    assert "\rcodegen-jax: compiled\n" in capsys.readouterr().err


def test_a_warning_is_printed_once_and_no_more_than_a_thousand_are_remembered(capsys):
    log = logging.getLogger("codegen_jax")
    with console():
        for _ in range(2):
            log.warning("the same")
        (handler,) = (h for h in log.handlers if hasattr(h, "warned"))
        for number in range(2000):
            log.warning(f"{number}")
        assert len(handler.warned) == 1000
    assert capsys.readouterr().err.count("the same") == 1


def test_a_bug_keeps_its_traceback(capsys):
    with console():
        try:
            raise RuntimeError("ours")
        except RuntimeError as error:
            assert report(error, where="process 1") == 1
    err = capsys.readouterr().err
    assert "Traceback" in err and err.endswith("codegen-jax: error: process 1: RuntimeError: ours\n")


def test_after_the_command_nothing_of_the_logging_has_changed():
    log = logging.getLogger("codegen_jax")
    before = log.handlers[:], log.level, log.propagate
    with console():
        assert log.handlers != before[0]
    assert (log.handlers, log.level, log.propagate) == before


def test_importing_the_package_changes_nothing_of_the_program_that_imports_it(tmp_path):
    program = (
        "import logging, os\n"
        "import absl.logging, asyncio, gcsfs\n"  # these libraries may set levels themselves
        "levels = {n: logging.getLogger(n).level for n in logging.root.manager.loggerDict}\n"
        "import jax; config, environment = dict(jax.config.values), dict(os.environ)\n"  # JAX sets TPU_LIBRARY_PATH
        "import codegen_jax, pkgutil, importlib\n"
        "apart = ('.__main__', '.inside.', '.confinement.')\n"  # separate programs
        "for module in pkgutil.walk_packages(codegen_jax.__path__, 'codegen_jax.'):\n"
        "    if not any(name in module.name for name in apart): importlib.import_module(module.name)\n"
        "print({n: (os.environ.get(n), v) for n, v in environment.items() if os.environ.get(n) != v})\n"
        "print(sorted(n for n in os.environ.keys() - environment if 'JAX' in n or 'XLA' in n or 'TPU' in n))\n"
        "print({n: v for n, v in levels.items() if logging.getLogger(n).level != v})\n"
        "print({n: v for n, v in jax.config.values.items() if config[n] != v})\n"
        "print(logging.getLogger('codegen_jax').handlers)\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX", "XLA"))}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.stdout.splitlines() == ["{}", "[]", "{}", "{}", "[]"], done.stdout + done.stderr


def test_a_line_of_a_runs_log_can_be_read_at_once(monkeypatch):
    reader, writer = os.pipe()
    with console(), os.fdopen(writer, "w") as pipe, os.fdopen(reader) as read:
        monkeypatch.setattr(sys, "stdout", pipe)
        os.set_blocking(reader, False)
        logging.getLogger(RUN_LOG).info("step 1")
        assert read.readline() == "step 1\n"
