"""The verbs train and config show."""

import argparse
from typing import Any

from codegen_jax.cli.arguments import CONFIG, add_config, read_config


class FieldsHelp(argparse.Action):
    """--help that also lists all config fields. The list is built on demand, since jsonargparse is slow to import."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from codegen_jax.config_file import fields_help

        parser.print_help()
        print(f"\n{fields_help()}", end="")
        parser.exit()


def add_verbs(verbs: Any) -> None:
    verb = verbs.add_parser("train", help="train from a config, or resume a run", add_help=False)
    verb.add_argument("-h", "--help", action=FieldsHelp, nargs=0, help="show this help and all config fields")
    verb.add_argument("config", metavar="CONFIG", help=f"{CONFIG}; override any field with --section.field VALUE")
    verb.calls(train, accepts_fields=True)

    config = verbs.add_parser("config", help="inspect a config").add_subparsers(required=True, metavar="VERB")
    verb = config.add_parser(
        "show", help="print a run's config on this machine, with defaults and auto settings resolved"
    )
    add_config(verb)
    verb.calls(show, accepts_fields=True)


def train(arguments: argparse.Namespace) -> None:
    from codegen_jax.training.claim import is_finished

    config = read_config(arguments)
    if is_finished(config):
        print(f"{config.output}: all {config.training.steps:,} steps are done; raise training.steps to continue")
        return
    from codegen_jax.training.loop import train  # after the config is checked, since importing jax takes a second

    train(config)


def show(arguments: argparse.Namespace) -> None:
    config = read_config(arguments)
    from codegen_jax.config_file import dump_config
    from codegen_jax.training.resolve import resolved_config

    print(dump_config(resolved_config(config)), end="")
