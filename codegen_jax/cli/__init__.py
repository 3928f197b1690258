"""The command codegen-jax. Each file holds a family of verbs; they parse, call and print, and compute nothing."""

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
from codegen_jax.cli import data, evaluate, models, plan, results, train
from codegen_jax.cli.arguments import Parser
from codegen_jax.cli.console import STDOUT, console, drop_unwritten, is_unread
from codegen_jax.config import RunConfig
from codegen_jax.errors import UNREAD, Preempted, UserError, report
from codegen_jax.fields import did_you_mean


def main(words: Sequence[str] | None = None) -> None:
    """Run the command; exits with 0, or what `report` says of an error."""
    choose_platform()
    quiet_libraries()
    with console():
        try:
            run(make_parser(), words)
            print(end="", flush=True)
        except (UserError, OSError, Preempted, KeyboardInterrupt) as error:
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
    except UserError as error:  # the library's messages begin with a field's name; here the field has a flag
        field, colon, rest = str(error).partition(":")
        flag = verb.flags.get(field)
        if flag is None or field in given_words(arguments):  # the latter: a file or model of that name
            raise
        raise UserError(f"{flag}{colon}{rest}") from error


def refuse_unknown(words: list[str], verb: Parser, takes_fields: bool) -> None:
    """Raise `UserError` for the first word that is no argument of a verb, nor might be a field of a config."""
    top_fields = {f"--{field.name}" for field in dataclasses.fields(RunConfig)}
    for flag in (word.partition("=")[0] for word in words):
        hint = did_you_mean(flag, verb.flags.values())
        may_be_field = takes_fields and (not hint or "." in flag or flag in top_fields or flag[:2] != "--")
        if not may_be_field:
            raise UserError(f"{flag}: no such argument of {verb.prog}{hint or f'; see {verb.prog} --help'}")


def given_words(arguments: argparse.Namespace) -> set[str]:
    """What the user typed as values."""
    values = [value if isinstance(value, list) else [value] for value in vars(arguments).values()]
    return {word for value in values for word in value if isinstance(word, str)}


def make_parser() -> Parser:
    parser = Parser(prog="codegen-jax", description="CodeGen in JAX.")
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for family in (data, train, models, plan, evaluate, results):
        family.add_verbs(verbs)
    return parser


def choose_platform() -> None:
    """Without a TPU, libtpu (which is here for `codegen-jax plan`) makes the start of JAX slow and prints errors."""
    if find_spec("libtpu") and not glob("/dev/accel*") + glob("/dev/vfio/*"):
        gpu = find_spec("jax_cuda13_plugin") and glob("/dev/nvidia[0-9]*")
        os.environ.setdefault("JAX_PLATFORMS", "cuda,cpu" if gpu else "cpu")


def quiet_libraries() -> None:
    """Orbax narrates every save through absl, asyncio prints a traceback for each chunk of one that fails, and what
    gcsfs logs it raises, too; the command says such things in a line. Chunks that end after their failed save or read
    find that nobody waits for them, or are never begun, which Python tells as a warning or the hook for errors that
    cannot be caught."""
    for name in ("absl", "asyncio", "gcsfs"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    sys.unraisablehook = lambda found: None if is_late_chunk(found) else sys.__unraisablehook__(found)


def is_late_chunk(found: "sys.UnraisableHookArgs") -> bool:
    return isinstance(found.object, CoroutineType) or str(found.exc_value) == "Event loop is closed"
