"""The codegen-jax command. Each file implements related verbs, which parse arguments, call the library and print."""

import argparse
import dataclasses
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from glob import glob
from importlib.util import find_spec
from types import CoroutineType

from codegen_jax import __version__
from codegen_jax.cli import data, doctor, evaluate, models, plan, results, train
from codegen_jax.cli.arguments import Parser
from codegen_jax.cli.console import STDOUT, console, discard_unwritten, has_no_reader
from codegen_jax.config import RunConfig
from codegen_jax.errors import UNREAD, Preempted, UserError, report
from codegen_jax.fields import did_you_mean
from codegen_jax.progress import can_redraw, only_our_bars


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command. On an error, exit with the code from `report`, or with `UNREAD` if stdout's reader is gone."""
    choose_platform()
    quiet_libraries()
    with console(), only_our_bars():
        try:
            run(make_parser(), argv)
            print(end="", flush=True)
        except (UserError, OSError, Preempted, KeyboardInterrupt) as error:
            if isinstance(error, KeyboardInterrupt) and can_redraw():
                print(end="\r", file=sys.stderr)  # the message replaces the terminal's ^C
            reader_is_gone = isinstance(error, BrokenPipeError) and has_no_reader(STDOUT)
            sys.exit(UNREAD if reader_is_gone else report(error))
        finally:
            discard_unwritten()


def run(parser: Parser, argv: Sequence[str] | None) -> None:
    arguments, arguments.overrides = parser.parse_known_args(argv)
    verb: Parser = arguments.parser
    refuse_unknown(arguments.overrides, verb, arguments.accepts_fields)
    try:
        arguments.verb(arguments)
    except UserError as error:  # library messages begin with a field's name; the command shows its flag
        field, colon, rest = str(error).partition(":")
        flag = verb.flags.get(field)
        if flag is None or field in typed_values(arguments):  # a file or model may share the field's name
            raise
        raise UserError(f"{flag}{colon}{rest}") from error


def refuse_unknown(unknown: list[str], verb: Parser, accepts_fields: bool) -> None:
    """Raise `UserError` for the first unknown argument that cannot be a config field either."""
    top_fields = {f"--{field.name}" for field in dataclasses.fields(RunConfig)}
    for flag in (word.partition("=")[0] for word in unknown):
        hint = did_you_mean(flag, verb.flags.values())
        may_be_field = accepts_fields and (not hint or "." in flag or flag in top_fields or flag[:2] != "--")
        if not may_be_field:
            raise UserError(f"{flag}: not an argument of {verb.prog}{hint or f'; see {verb.prog} --help'}")


def typed_values(arguments: argparse.Namespace) -> set[str]:
    """All values on the command line."""
    values = [value if isinstance(value, list) else [value] for value in vars(arguments).values()]
    return {item for value in values for item in value if isinstance(item, str)}


def make_parser() -> Parser:
    parser = Parser(prog="codegen-jax", description="Train, convert, run and evaluate CodeGen models in JAX.")
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for family in (data, train, models, plan, evaluate, results, doctor):
        family.add_verbs(verbs)
    return parser


def choose_platform() -> None:
    """Without a TPU, keep JAX off libtpu (installed for `codegen-jax plan`), which slows startup and prints errors."""
    if find_spec("libtpu") and not glob("/dev/accel*") + glob("/dev/vfio/*"):
        gpu = find_spec("jax_cuda13_plugin") and glob("/dev/nvidia[0-9]*")
        os.environ.setdefault("JAX_PLATFORMS", "cuda,cpu" if gpu else "cpu")


def quiet_libraries() -> None:
    """Silence output that the command already reports in one line.

    Orbax logs every save through absl, asyncio prints a traceback for each chunk of a failed save, and gcsfs both logs
    and raises its errors. If a save or read fails, the coroutines of its remaining chunks are not awaited; Python
    reports them with a warning or through `sys.unraisablehook`.
    """
    for name in ("absl", "asyncio", "gcsfs"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    sys.unraisablehook = lambda error: None if is_late_chunk(error) else sys.__unraisablehook__(error)


def is_late_chunk(error: "sys.UnraisableHookArgs") -> bool:
    return isinstance(error.object, CoroutineType) or str(error.exc_value) == "Event loop is closed"
