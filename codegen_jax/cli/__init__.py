"""The command codegen-jax. Each file holds a family of verbs; they parse, call and print, and compute nothing."""

import logging
import os
import sys
from collections.abc import Sequence
from glob import glob
from importlib.util import find_spec

from codegen_jax import __version__
from codegen_jax.cli import data, evaluate, models, plan, train
from codegen_jax.cli.arguments import Parser
from codegen_jax.cli.console import console
from codegen_jax.errors import Preempted, UserError, report
from codegen_jax.fields import did_you_mean


def main(words: Sequence[str] | None = None) -> None:
    """Run the command; exits with 0, or what `report` says of an error."""
    choose_platform()
    quiet_libraries()
    with console():
        try:
            run(make_parser(), words)
        except (UserError, OSError, Preempted, KeyboardInterrupt) as error:
            sys.exit(report(error))


def run(parser: Parser, words: Sequence[str] | None) -> None:
    arguments, arguments.overrides = parser.parse_known_args(words)
    verb: Parser = arguments.parser
    if arguments.overrides and not arguments.takes_fields:
        flag = arguments.overrides[0]
        hint = did_you_mean(flag, verb.flags.values())
        raise UserError(f"{flag}: no such argument of {verb.prog}{hint or f'; see {verb.prog} --help'}")
    try:
        arguments.verb(arguments)
    except UserError as error:  # the library's messages begin with a field's name; here the field has a flag
        field, colon, rest = str(error).partition(":")
        raise UserError(f"{verb.flags.get(field, field)}{colon}{rest}") from error


def make_parser() -> Parser:
    parser = Parser(prog="codegen-jax", description="CodeGen in JAX.")
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for family in (data, train, models, plan, evaluate):
        family.add_verbs(verbs)
    return parser


def choose_platform() -> None:
    """Without a TPU, libtpu (which is here for `codegen-jax plan`) makes the start of JAX slow and prints errors."""
    if find_spec("libtpu") and not glob("/dev/accel*") + glob("/dev/vfio/*"):
        gpu = find_spec("jax_cuda13_plugin") and glob("/dev/nvidia[0-9]*")
        os.environ.setdefault("JAX_PLATFORMS", "cuda,cpu" if gpu else "cpu")


def quiet_libraries() -> None:
    """Orbax narrates every save through absl, asyncio prints a traceback for each chunk of one that fails, and what
    gcsfs logs it raises, too; the command says such things in a line."""
    for name in ("absl", "asyncio", "gcsfs"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
