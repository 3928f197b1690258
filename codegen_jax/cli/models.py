"""The verbs convert and generate, for models in any format."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from itertools import chain
from typing import Any, Literal, get_args, get_origin

from codegen_jax.cli.arguments import (
    MODEL,
    Parser,
    add_adapter,
    add_allow_nonfinite,
    add_decoding,
    add_loading,
    load,
    number,
    whole_number,
)
from codegen_jax.cli.console import uninterrupted
from codegen_jax.cli.prompts import add_prompts, read_prompts
from codegen_jax.errors import require
from codegen_jax.fields import documentation
from codegen_jax.strict_json import dumps


def add_verbs(verbs: Any) -> None:
    verb = verbs.add_parser("convert", help="convert a model between weight formats")
    verb.add_argument(
        "source", metavar="SOURCE", help=MODEL + "; or a checkpoint of jaxformer, the authors' training code"
    )
    verb.add_argument("destination", metavar="DESTINATION", help="a new or empty folder")
    verb.add_argument(
        "--to",
        choices=("jax", "hf", "gptj", "peft"),
        default="jax",
        help="jax: a codegen_jax checkpoint; hf: transformers' CodeGen; gptj: the same network as a GPT-J; peft: the "
        "adapter of a run, without its model (default: %(default)s)",
    )
    verb.add_argument(
        "--dtype", choices=("float16", "bfloat16", "float32"), help="dtype of the weights (default: the source's)"
    )
    verb.add_argument(
        "--mp-num",
        type=whole_number,
        metavar="N",
        help="groups in qkv_proj of SOURCE, or of DESTINATION and PEFT adapters if SOURCE is a codegen_jax checkpoint "
        "(default: mp_num in SOURCE's config.json, else 4; give 8 for models trained on TPU v3)",
    )
    verb.add_argument(
        "--tokenizer", metavar="T", help="folder, file or hub id of a tokenizer that replaces the source's"
    )
    verb.add_argument(
        "--whitespace-tokens",
        action="store_true",
        help="add CodeGen's 38 whitespace tokens to the tokenizer given by --tokenizer",
    )
    verb.add_argument(
        "--verify",
        dest="proof",
        nargs="?",
        const="numpy",
        choices=("numpy", "torch"),
        help="compare the logits with those of an independent implementation in NumPy (the default) or of transformers "
        "(torch); DESTINATION is created only if they agree",
    )
    add_adapter(verb)
    add_allow_nonfinite(verb)
    verb.calls(convert)

    verb = verbs.add_parser("generate", help="generate completions of prompts")
    verb.add_argument("model", metavar="MODEL", help=MODEL)
    add_prompts(verb)
    add_options(verb)
    add_decoding(verb)
    add_loading(verb)
    verb.add_argument(
        "--suffix", metavar="TEXT", help="complete the text between the prompt and this text (fill-in-the-middle)"
    )
    verb.add_argument("--stream", action="store_true", help="print the text as it is generated")
    verb.add_argument("--json", action="store_true", help="print one JSON object per completion")
    verb.calls(generate)


class AddBias(argparse.Action):
    """Add ID=BIAS to a dict of biases."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        id, _, bias = values.partition("=")
        try:
            added = {int(id): float(bias)}
        except ValueError as error:
            raise argparse.ArgumentError(self, f"must be ID=BIAS, such as 50256=-100, got {values!r}") from error
        setattr(namespace, self.dest, getattr(namespace, self.dest) | added)


def add_options(parser: Parser) -> None:
    """Add a flag for each field of `Options`, with the field's type and documentation."""
    from codegen_jax.inference.request import Options

    for field in dataclasses.fields(Options):
        types = get_args(field.type) or (field.type,)  # `int | None` gives int
        flag = field.metadata.get("flag", "--" + field.name.replace("_", "-"))
        keywords: dict[str, Any] = {"dest": field.name, "default": field.default}
        keywords["metavar"] = field.metadata.get("metavar")
        text = documentation(Options)[field.name].removesuffix(".").replace("%", "%%")
        if field.type is bool:
            keywords = {"dest": field.name, "action": "store_true"}
        elif get_origin(field.type) is dict:
            keywords |= {"action": AddBias, "default": {}}
            text += "; may be repeated"
        elif get_origin(field.type) is Sequence:
            keywords |= {"action": "append", "default": [], "metavar": "TEXT"}
            text += "; may be repeated"
        elif int in types:
            keywords |= {"type": whole_number, "metavar": "N"}
        elif float in types:
            keywords |= {"type": number, "metavar": "X"}
        elif get_origin(types[0]) is Literal:
            keywords["choices"] = get_args(types[0])
        if field.default not in (None, (), False, dataclasses.MISSING):
            text += " (default: %(default)s)"
        parser.add_argument(flag, help=text, **keywords)


def convert(arguments: argparse.Namespace) -> None:
    from codegen_jax.conversion.convert import convert
    from codegen_jax.data.tokenizer import load_tokenizer

    require(
        bool(arguments.tokenizer) or not arguments.whitespace_tokens,
        "whitespace_tokens: requires --tokenizer; the source's own tokenizer is not modified",
    )
    tokenizer = load_tokenizer(arguments.tokenizer, arguments.whitespace_tokens) if arguments.tokenizer else None
    summary = convert(
        arguments.source,
        arguments.destination,
        to=arguments.to,
        dtype=arguments.dtype,
        mp_num=arguments.mp_num,
        tokenizer=tokenizer,
        proof=arguments.proof,
        allow_nonfinite=arguments.allow_nonfinite,
        adapters=arguments.adapters,
    )
    print(
        f"{arguments.destination}: {summary.parameters:,} parameters, {summary.nbytes / 1e9:,.2f} GB of "
        f"{' and '.join(summary.dtypes)} in {summary.seconds:.1f} s, peak memory {summary.peak_bytes / 2**30:.2f} GiB"
    )
    if summary.agreement is not None:
        print(f"verified: {summary.agreement}")


def generate(arguments: argparse.Namespace) -> None:
    from codegen_jax.inference.request import Options

    options = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(Options)}
    prompts = read_prompts(arguments)
    require(not arguments.stream or len(prompts) == 1, "stream: requires a single prompt")
    require(not (arguments.stream and arguments.json), "stream: cannot be combined with --json")
    require(arguments.logprobs is None or arguments.json, "logprobs: requires --json")
    Options.of(options)  # reject bad options before loading a model
    model = load(arguments, quantize=arguments.quantize)
    given: Sequence[str | list[int]] = prompts
    suffix = arguments.suffix or ""
    if arguments.suffix is not None:
        from codegen_jax.data.infill import infill_prompt

        given = [infill_prompt(model.tokenizer, prefix, suffix) for prefix in prompts]
        most = model.config.n_positions - arguments.max_new_tokens
        longest = max(map(len, given))
        require(longest <= most, f"suffix: it and the prompt have {longest} tokens, but only {most} fit the context")
    if arguments.stream:
        chunks = model.stream(given[0], **options)
        first = next(chunks, "")  # compiles most programs, whose log messages then precede the text
        with uninterrupted():
            for chunk in chain((prompts[0], first), chunks, [suffix]):
                print(chunk, end="", flush=True)
        return
    completions = model.complete(given, **options)
    for place, completion in enumerate(completions):
        prompt = prompts[place // options["num_samples"]]
        if arguments.json:
            record = {name: value for name, value in dataclasses.asdict(completion).items() if value is not None}
            if arguments.draft is None:
                del record["proposed"], record["accepted"]
            if arguments.suffix is not None:
                record |= {"prompt": prompt, "suffix": suffix}
            print(dumps(record))
        else:
            print(prompt + completion.completion + suffix)
    if proposed := sum(completion.proposed for completion in completions):
        accepted = sum(completion.accepted for completion in completions)
        share = f"{accepted:,} of {proposed:,} draft tokens accepted ({accepted / proposed:.0%})"
        print(f"codegen-jax: {share}", file=sys.stderr)
