"""The verb plan: whether a run fits a TPU slice that is not attached, and how fast it would be."""

import argparse
import os
import sys
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

from codegen_jax.cli.arguments import add_config, read_config, whole_number
from codegen_jax.errors import report, require
from codegen_jax.strict_json import dumps


def add_verbs(verbs: Any) -> None:
    verb = verbs.add_parser("plan", help="estimate memory and speed of a run on a TPU slice, without one")
    add_config(verb)
    verb.add_argument("--topology", required=True, metavar="SLICE", help="such as v4-512, v5litepod-16 or v5e-4x4")
    verb.add_argument("--slices", type=whole_number, default=1, metavar="N", help="default: %(default)s")
    verb.add_argument(
        "--fit", action="store_true", help="search remat, micro-batches and mesh for the fastest that fits"
    )
    verb.add_argument(
        "--mode", choices=("train", "decode"), default="train", help="what to compile (default: %(default)s)"
    )
    verb.add_argument(
        "--batch-size",
        dest="rows",
        type=whole_number,
        default=1,
        metavar="N",
        help="number of sequences to decode (decode mode; default: %(default)s)",
    )
    verb.add_argument(
        "--prompt-tokens", type=whole_number, default=1024, metavar="N", help="of each (default: %(default)s)"
    )
    verb.add_argument(
        "--max-new-tokens", type=whole_number, default=128, metavar="N", help="of each (default: %(default)s)"
    )
    verb.add_argument(
        "--tensor", type=whole_number, metavar="N", help="of decode: chips that share the heads (default: all)"
    )
    verb.add_argument("--quantize", choices=("int8",), help="of decode: weights as int8")
    verb.add_argument("--plot", metavar="FILE.png", help="draw where time and memory go")
    verb.add_argument("--dump-hlo", metavar="FILE", help="write the compiled program's text")
    verb.add_argument("--json", action="store_true", help="one object")
    verb.calls(plan, accepts_fields=True)


def plan(arguments: argparse.Namespace) -> None:
    """Run `make` in a thread: a compilation ignores Ctrl-C, but the main thread that waits for it does not."""
    with ThreadPoolExecutor(1) as thread:
        try:
            work = thread.submit(make, arguments)
            while not work.done():
                wait([work], timeout=0.2)
        except KeyboardInterrupt as error:
            os._exit(report(error))  # a normal exit would wait for the compilation
        work.result()


def make(arguments: argparse.Namespace) -> None:
    from codegen_jax.planning.fit import fit, settings
    from codegen_jax.planning.plan import make_plan
    from codegen_jax.planning.plan_report import describe, plot
    from codegen_jax.planning.slices import parse_slice

    config, tpu = read_config(arguments), parse_slice(arguments.topology)
    if arguments.mode == "decode":
        for name, default in (("slices", 1), ("fit", False), ("plot", None), ("dump_hlo", None)):
            require(getattr(arguments, name) == default, f"{name}: goes with --mode train")
        from codegen_jax.planning.decode_plan import plan_decode

        decoding = plan_decode(
            config.model,
            tpu,
            tensor=arguments.tensor,
            rows=arguments.rows,
            prompt_tokens=arguments.prompt_tokens,
            max_new_tokens=arguments.max_new_tokens,
            quantize=arguments.quantize,
        )
        print(dumps(decoding.to_dict()) if arguments.json else decoding)
        return
    if arguments.fit:
        config, _ = fit(config, tpu, arguments.slices, lambda line: print(line, file=sys.stderr))
        print(settings(config), file=sys.stderr)
    plan = make_plan(config, tpu, arguments.slices, dump_hlo=arguments.dump_hlo)
    print(dumps(plan.to_dict()) if arguments.json else describe(plan))
    if arguments.plot:
        plot(plan, arguments.plot)
