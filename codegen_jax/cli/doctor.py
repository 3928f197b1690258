"""The verb doctor, which prints what a bug report needs."""

import argparse
import os
from typing import Any

from codegen_jax.strict_json import dumps

GIVEN = dict(os.environ)  # before the command sets variables of its own


def add_verbs(verbs: Any) -> None:
    verb = verbs.add_parser("doctor", help="print versions, devices, memory, caches and missing extras for bug reports")
    verb.add_argument("--json", action="store_true", help="print a single JSON object")
    verb.calls(doctor)


def doctor(arguments: argparse.Namespace) -> None:
    from codegen_jax.doctor import gather

    facts = gather(GIVEN)
    if arguments.json:
        print(dumps(facts))
        return
    width = max(map(len, facts)) + 2
    for name, value in facts.items():
        if isinstance(value, str):
            print(f"{name:<{width}}{value}")
    for name, values in facts.items():
        if isinstance(values, dict):
            print(f"\n{name}")
            wide = max(map(len, values), default=0) + 2
            for key, value in values.items():
                print(f"  {key:<{wide}}{value}")
