"""The codegen-jax command. Each file holds a family of verbs, which parse arguments, call the library and print."""

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
from codegen_jax.cli.console import STDOUT, console, drop_unwritten, is_unread
from codegen_jax.config import RunConfig
from codegen_jax.errors import UNREAD, Preempted, UserError, report
from codegen_jax.fields import did_you_mean
from codegen_jax.progress import can_redraw, only_our_bars


def main(words: Sequence[str] | None = None) -> None:
    """Run the command. On an error, exit with the code from `report`, or with `UNREAD` if stdout's reader is gone."""
    choose_platform()
    quiet_libraries()
    with console(), only_our_bars():
        try:
            run(make_parser(), words)
            print(end="", flush=True)
        except (UserError, OSError, Preempted, KeyboardInterrupt) as error:
            if isinstance(error, KeyboardInterrupt) and can_redraw():
                print(end="\r", file=sys.stderr)  # the message replaces the terminal's ^C
            nobody_reads = isinstance(error, BrokenPipeError) and is_unread(STDOUT)
            sys.exit(UNREAD if nobody_reads else report(error))
        finally:
            drop_unwritten()


def run(parser: Parser, words: Sequence[str] | None) -> None:
    arguments, arguments.overrides = parser.parse_known_args(words)
    verb: Parser = arguments.parser
    refuse_unknown(arguments.overrides, verb, arguments.takes_fields)
    try:
        arguments.verb(arguments)
    except UserError as error:  # library messages begin with a field's name; the command shows its flag
        field, colon, rest = str(error).partition(":")
        flag = verb.flags.get(field)
        if flag is None or field in given_words(arguments):  # a file or model may share the field's name
            raise
        raise UserError(f"{flag}{colon}{rest}") from error


def refuse_unknown(words: list[str], verb: Parser, takes_fields: bool) -> None:
    """Raise `UserError` for the first word that is neither an argument of the verb nor possibly a config field."""
    top_fields = {f"--{field.name}" for field in dataclasses.fields(RunConfig)}
    for flag in (word.partition("=")[0] for word in words):
        hint = did_you_mean(flag, verb.flags.values())
        may_be_field = takes_fields and (not hint or "." in flag or flag in top_fields or flag[:2] != "--")
        if not may_be_field:
            raise UserError(f"{flag}: no such argument of {verb.prog}{hint or f'; see {verb.prog} --help'}")


def given_words(arguments: argparse.Namespace) -> set[str]:
    """Every value the user typed."""
    values = [value if isinstance(value, list) else [value] for value in vars(arguments).values()]
    return {word for value in values for word in value if isinstance(word, str)}


def make_parser() -> Parser:
    parser = Parser(prog="codegen-jax", description="CodeGen in JAX.")
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for family in (data, train, models, plan, evaluate, results, doctor):
        family.add_verbs(verbs)
    return parser


def choose_platform() -> None:
    """Keep JAX off libtpu, installed for `codegen-jax plan`, if there is no TPU: it slows startup and prints errors."""
    if find_spec("libtpu") and not glob("/dev/accel*") + glob("/dev/vfio/*"):
        gpu = find_spec("jax_cuda13_plugin") and glob("/dev/nvidia[0-9]*")
        os.environ.setdefault("JAX_PLATFORMS", "cuda,cpu" if gpu else "cpu")


def quiet_libraries() -> None:
    """Silence output that the command already reports in one line.

    Orbax logs every save through absl, asyncio prints a traceback for each chunk of a failed save, and gcsfs both logs
    and raises its errors. Chunks that finish after their save or read has failed, or never start, have no awaiter;
    Python reports them with a warning or through `sys.unraisablehook`.
    """
    for name in ("absl", "asyncio", "gcsfs"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    sys.unraisablehook = lambda found: None if is_late_chunk(found) else sys.__unraisablehook__(found)


def is_late_chunk(found: "sys.UnraisableHookArgs") -> bool:
    return isinstance(found.object, CoroutineType) or str(found.exc_value) == "Event loop is closed"
