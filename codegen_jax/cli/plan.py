"""The verb plan: check whether a run fits a TPU slice, without one, and estimate its speed."""

import argparse
import math
import os
import sys
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from codegen_jax.cli.arguments import add_config, number, read_config, whole_number
from codegen_jax.errors import report, require
from codegen_jax.strict_json import dumps


def add_verbs(verbs: Any) -> None:
    verb = verbs.add_parser("plan", help="check whether a run fits a TPU slice, without one, and estimate its speed")
    add_config(verb, is_optional=True)
    verb.add_argument("--topology", metavar="SLICE", help="slice type, such as v4-512, v5litepod-16 or v5e-4x4")
    verb.add_argument(
        "--all",
        nargs="*",
        metavar="KIND",
        help="plan CONFIG, or the paper's runs without one, on slices of these kinds (default: v4 v5p v5e v6e): the "
        "smallest on which it fits, and larger ones; mesh, micro-batches and remat are chosen for each slice, which "
        "takes a minute or more",
    )
    verb.add_argument(
        "--slices", type=whole_number, default=1, metavar="N", help="number of slices (default: %(default)s)"
    )
    verb.add_argument(
        "--fit",
        action="store_true",
        help="search remat policies, micro-batches and meshes for the fastest plan that fits",
    )
    verb.add_argument(
        "--mode", choices=("train", "decode"), default="train", help="program to compile (default: %(default)s)"
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
        "--prompt-tokens",
        type=whole_number,
        default=1024,
        metavar="N",
        help="tokens per prompt (decode mode; default: %(default)s)",
    )
    verb.add_argument(
        "--max-new-tokens",
        type=whole_number,
        default=128,
        metavar="N",
        help="tokens to generate per prompt (decode mode; default: %(default)s)",
    )
    verb.add_argument(
        "--tensor",
        type=whole_number,
        metavar="N",
        help="chips that share the attention heads (decode mode; default: all)",
    )
    verb.add_argument("--quantize", choices=("int8",), help="quantize the weights to int8 (decode mode)")
    verb.add_argument("--price", type=number, metavar="X", help="price of a chip-hour, for the cost of the run")
    verb.add_argument(
        "--plot",
        metavar="FILE.png",
        help="plot the breakdown of step time and memory, or with --all the days over the number of chips",
    )
    verb.add_argument("--dump-hlo", metavar="FILE", help="write the optimized HLO to a file")
    verb.add_argument("--json", action="store_true", help="print the plan as one JSON object, or with --all a list")
    verb.calls(plan, accepts_fields=True)


def plan(arguments: argparse.Namespace) -> None:
    """Run `make` in a thread: compilation ignores Ctrl-C, but the main thread that waits for it does not."""
    with ThreadPoolExecutor(1) as thread:
        try:
            work = thread.submit(make, arguments)
            while not work.done():
                wait([work], timeout=0.2)
        except KeyboardInterrupt as error:
            os._exit(report(error))  # a normal exit would wait for the compilation
        work.result()


def make(arguments: argparse.Namespace) -> None:
    price = arguments.price
    require(price is None or 0 < price < math.inf, f"price: must be positive, got {price}")
    if arguments.all is not None:
        make_all(arguments)
        return
    require(arguments.config is not None, "CONFIG: missing; give a config, or --all for the paper's runs")
    require(arguments.topology is not None, "topology: missing; give a slice, such as v4-512, or --all")
    from codegen_jax.planning.fit import fit, settings
    from codegen_jax.planning.plan import make_plan
    from codegen_jax.planning.plan_report import describe, plot
    from codegen_jax.planning.slices import parse_slice

    config, tpu = read_config(arguments), parse_slice(arguments.topology)
    if arguments.mode == "decode":
        for name, default in (("slices", 1), ("fit", False), ("price", None), ("plot", None), ("dump_hlo", None)):
            require(getattr(arguments, name) == default, f"{name}: requires --mode train")
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
    print(dumps(plan.to_dict(price)) if arguments.json else describe(plan, price))
    if arguments.plot:
        plot(plan, arguments.plot)


def make_all(arguments: argparse.Namespace) -> None:
    from codegen_jax.config_file import load_config, shipped_config
    from codegen_jax.planning.slices import KINDS
    from codegen_jax.planning.survey import RUNS, survey
    from codegen_jax.planning.survey_report import plot, table, to_dicts

    for name in ("topology", "slices", "fit", "mode", "dump_hlo", "rows", "prompt_tokens", "max_new_tokens", "tensor"):
        is_default = getattr(arguments, name) == arguments.parser.get_default(name)
        require(is_default, f"{name}: can't be used with --all")
    require(arguments.quantize is None, "quantize: can't be used with --all")
    # without CONFIG, argparse takes a field's value for it
    is_cut_off = arguments.overrides and arguments.overrides[-1].startswith("--") and "=" not in arguments.overrides[-1]
    require(
        not arguments.overrides or (arguments.config is not None and not is_cut_off),
        "all: fields need CONFIG, as in: codegen-jax plan 16b_nl --all --training.batch_size 512",
    )
    if arguments.config is None:
        configs = {name: load_config(shipped_config(name) or name, []) for name in RUNS}
    else:
        configs = {Path(arguments.config).stem: read_config(arguments)}
    entries = survey(configs, arguments.all or list(KINDS), lambda line: print(line, file=sys.stderr))
    print(dumps(to_dicts(entries, arguments.price)) if arguments.json else table(entries, arguments.price))
    if arguments.plot:
        plot(entries, arguments.plot)
