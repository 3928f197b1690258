"""The command codegen-jax: one function a verb, parsing only."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from codegen_jax import __version__
from codegen_jax.errors import Preempted, UserError, report, require

if TYPE_CHECKING:
    from codegen_jax.evaluation.perplexity import Perplexity
    from codegen_jax.inference.generate import Generator

MODEL = "a run's output folder, a checkpoint, a Hugging Face folder or a hub id"


def main(words: Sequence[str] | None = None) -> None:
    """Run the command; exits with 0, or what `report` says of an error."""
    parser = make_parser()
    arguments, arguments.overrides = parser.parse_known_args(words)
    if arguments.overrides and arguments.verb not in (train, show, plan):
        parser.error(f"unrecognized arguments: {' '.join(arguments.overrides)}")
    try:
        arguments.verb(arguments)
    except (UserError, OSError, Preempted, KeyboardInterrupt) as error:
        sys.exit(report(error))


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="codegen-jax", description="CodeGen in JAX.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    inputs = argparse.ArgumentParser(add_help=False)
    inputs.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help=".jsonl[.zst|.gz] or .parquet: a file, folder, glob or URL; or a hub dataset, hub:OWNER/NAME[@SPLIT]",
    )
    inputs.add_argument("--output", required=True, metavar="DIR", help="a new folder")

    tokenizer = verbs.add_parser("tokenizer", help="train a tokenizer")
    tokenizer_verbs = tokenizer.add_subparsers(required=True, metavar="VERB")
    verb = tokenizer_verbs.add_parser("train", parents=[inputs], help="train a sentencepiece model from raw shards")
    verb.add_argument("--vocab-size", type=int, required=True, metavar="N")
    verb.add_argument(
        "--max-megabytes", type=float, default=100, metavar="N", help="text to read (default: %(default)s)"
    )
    verb.set_defaults(verb=train_tokenizer)

    verb = verbs.add_parser("prepare", parents=[inputs], help="turn raw shards into token files")
    verb.add_argument("--tokenizer", required=True, metavar="T", help="a tokenizer's folder, file or hub id")
    verb.add_argument("--whitespace-tokens", action="store_true", help="add CodeGen's 38 to a GPT-2 vocabulary")
    verb.add_argument(
        "--filters", choices=("none", "code"), default="none", help="the paper's rules for code (default: %(default)s)"
    )
    verb.add_argument(
        "--extensions", nargs="+", metavar=".EXT", help="what --filters code keeps (default: of the six languages)"
    )
    verb.add_argument(
        "--dedup",
        choices=("none", "exact", "minhash"),
        default="none",
        help="drop repeated texts; minhash: near-duplicates, too (default: %(default)s)",
    )
    verb.add_argument(
        "--decontaminate", nargs="+", default=[], metavar="FILE", help="drop what is in these benchmarks (JSON lines)"
    )
    verb.add_argument("--executor", choices=("local", "slurm", "ray"), default="local", help="default: %(default)s")
    verb.add_argument(
        "--executor-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an argument of datatrove's executor, such as Slurm's time and partition; may be given several times",
    )
    verb.add_argument("--workers", type=int, metavar="N", help="tasks at a time (default: 1 here, all on a cluster)")
    verb.add_argument("--seed", type=int, default=0, metavar="N", help="of the document shuffle (default: %(default)s)")
    verb.set_defaults(verb=prepare)

    verb = verbs.add_parser("train", help="train from a YAML config, or go on with a run", allow_abbrev=False)
    verb.add_argument("config", metavar="CONFIG.yaml", help="then any field as --section.field VALUE")
    verb.set_defaults(verb=train)

    data = verbs.add_parser("data", help="look at training data")
    data_verbs = data.add_subparsers(required=True, metavar="VERB")
    verb = data_verbs.add_parser("show", help="print what a step trains on", allow_abbrev=False)
    verb.add_argument("config", metavar="CONFIG.yaml", help="then any field as --section.field VALUE")
    verb.add_argument("--step", type=int, required=True, metavar="N", help="as in the log, from 1")
    verb.add_argument("--row", type=int, metavar="R", help="of the batch, from 0 (default: all)")
    verb.set_defaults(verb=show)

    verb = verbs.add_parser("convert", help="convert weights between formats", allow_abbrev=False)
    verb.add_argument("source", metavar="SOURCE", help=MODEL + ", or a jaxformer checkpoint")
    verb.add_argument("destination", metavar="DESTINATION", help="a new folder")
    verb.add_argument(
        "--to",
        choices=("jax", "hf", "gptj"),
        default="jax",
        help="our checkpoint, transformers' CodeGen, or the same network as a GPT-J (default: %(default)s)",
    )
    verb.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), help="default: as in the source")
    verb.add_argument(
        "--mp-num", type=int, metavar="N", help="groups in qkv_proj: 4 (default), or 8 for models of TPU v3"
    )
    verb.add_argument("--tokenizer", metavar="T", help="in place of the source's: a folder, file or hub id")
    verb.add_argument("--whitespace-tokens", action="store_true", help="add CodeGen's 38 to that tokenizer")
    verb.add_argument(
        "--verify",
        nargs="?",
        const="numpy",
        choices=("numpy", "torch"),
        help="compare with an independent implementation, or with transformers, before the destination appears",
    )
    verb.set_defaults(verb=convert)

    verb = verbs.add_parser(
        "plan", help="say whether a run fits TPUs that are not here, and how fast", allow_abbrev=False
    )
    verb.add_argument("config", metavar="CONFIG.yaml", help="then any field as --section.field VALUE")
    verb.add_argument("--topology", required=True, metavar="SLICE", help="such as v4-512, v5e-256, v5p-128, v6e-64")
    verb.add_argument("--slices", type=int, default=1, metavar="N", help="default: %(default)s")
    verb.add_argument(
        "--fit", action="store_true", help="search remat, micro-batches and mesh for the fastest that fits"
    )
    verb.add_argument(
        "--mode", choices=("train", "decode"), default="train", help="what to compile (default: %(default)s)"
    )
    verb.add_argument("--rows", type=int, default=1, metavar="N", help="of decode: sequences (default: %(default)s)")
    verb.add_argument("--prompt-tokens", type=int, default=1024, metavar="N", help="of each (default: %(default)s)")
    verb.add_argument("--max-new-tokens", type=int, default=128, metavar="N", help="of each (default: %(default)s)")
    verb.add_argument("--tensor", type=int, metavar="N", help="of decode: chips that share the heads (default: all)")
    verb.add_argument("--quantize", choices=("int8",), help="of decode: weights as int8")
    verb.add_argument("--plot", metavar="FILE.png", help="draw where time and memory go")
    verb.add_argument("--dump-hlo", metavar="FILE", help="write the compiled program's text")
    verb.add_argument("--json", action="store_true", help="one object")
    verb.set_defaults(verb=plan)

    verb = verbs.add_parser("generate", help="complete prompts", allow_abbrev=False)
    verb.add_argument("model", metavar="MODEL", help=MODEL)
    verb.add_argument("--prompt", required=True, action="append", metavar="TEXT", help="may be given several times")
    verb.add_argument("--max-new-tokens", type=int, default=128, metavar="N", help="default: %(default)s")
    verb.add_argument("--temperature", type=float, default=0.2, metavar="X", help="0 is greedy (default: %(default)s)")
    verb.add_argument("--top-p", type=float, default=0.95, metavar="X", help="default: %(default)s")
    verb.add_argument("--top-k", type=int, default=0, metavar="N", help="0 keeps all (default: %(default)s)")
    verb.add_argument("--num-samples", type=int, default=1, metavar="N", help="default: %(default)s")
    verb.add_argument("--min-p", type=float, default=0.0, metavar="X", help="0 keeps all (default: %(default)s)")
    verb.add_argument("--repetition-penalty", type=float, default=1.0, metavar="X", help="default: %(default)s")
    verb.add_argument("--stop", metavar="REGEX", help="end a completion before its first match")
    verb.add_argument(
        "--stop-string", action="append", default=[], metavar="TEXT", help="likewise; may be given several times"
    )
    verb.add_argument("--truncate", choices=("codegen",), help="end a completion where the authors' sample.py does")
    verb.add_argument("--logprobs", type=int, metavar="N", help="in --json: of the tokens, and of the N likeliest")
    verb.add_argument(
        "--draft",
        metavar="MODEL",
        help="guess tokens, which changes none: lookup (in prompt and output), or a model",
    )
    verb.add_argument("--num-guesses", type=int, default=4, metavar="N", help="of a draft (default: %(default)s)")
    verb.add_argument("--seed", type=int, default=0, metavar="N", help="default: %(default)s")
    add_run_arguments(verb)
    verb.add_argument("--stream", action="store_true", help="print the text as it comes")
    verb.add_argument("--json", action="store_true", help="one object a line")
    verb.set_defaults(verb=generate)

    evaluate = verbs.add_parser("evaluate", help="measure a model")
    evaluate.add_argument("model", metavar="MODEL", help=MODEL)
    measures = evaluate.add_subparsers(required=True, metavar="WHAT")
    verb = measures.add_parser("perplexity", help="on token files", allow_abbrev=False)
    verb.add_argument("tokens", metavar="TOKENS", help="a folder that prepare made with the model's tokenizer")
    verb.add_argument("--sequence-length", type=int, metavar="N", help="default: the model's context less one")
    verb.add_argument("--max-windows", type=int, metavar="N", help="use so many windows at most (default: all)")
    add_run_arguments(verb)
    verb.add_argument("--json", action="store_true", help="one object")
    verb.set_defaults(verb=perplexity)
    return parser


def add_run_arguments(verb: argparse.ArgumentParser) -> None:
    """How a model is loaded to run."""
    verb.add_argument("--dtype", choices=("bfloat16", "float32"), help="of the computation (default: the model's)")
    verb.add_argument("--quantize", choices=("int8",), help="weights as int8 with a scale for each output")
    verb.add_argument("--data", type=int, default=1, metavar="N", help="devices that share rows (default: %(default)s)")
    verb.add_argument("--tensor", type=int, default=1, metavar="N", help="and the heads (default: %(default)s)")


def load(arguments: argparse.Namespace, model: str) -> "Generator":
    from codegen_jax.config import MeshConfig
    from codegen_jax.inference.generate import Generator

    mesh = None if arguments.data == arguments.tensor == 1 else MeshConfig(arguments.data, 1, arguments.tensor)
    return Generator.load(model, arguments.dtype, arguments.quantize, mesh)


def train_tokenizer(arguments: argparse.Namespace) -> None:
    from codegen_jax.data.train_tokenizer import train_tokenizer

    tokenizer = train_tokenizer(arguments.inputs, arguments.output, arguments.vocab_size, arguments.max_megabytes)
    print(f"{arguments.output}: {tokenizer.vocab_size} ids, {tokenizer.fingerprint}")


def prepare(arguments: argparse.Namespace) -> None:
    from codegen_jax.data.executors import parse_options
    from codegen_jax.data.filters import CODE_EXTENSIONS
    from codegen_jax.data.prepare import prepare
    from codegen_jax.data.prepare_report import load_report, table
    from codegen_jax.data.tokenizer import load_tokenizer

    require(
        arguments.filters == "code" or not arguments.extensions, "--extensions: goes with --filters code; give both"
    )
    manifest = prepare(
        arguments.inputs,
        arguments.output,
        load_tokenizer(arguments.tokenizer, arguments.whitespace_tokens),
        filters=arguments.filters,
        extensions=arguments.extensions or CODE_EXTENSIONS,
        dedup=arguments.dedup,
        decontaminate=arguments.decontaminate,
        executor=arguments.executor,
        executor_options=parse_options(arguments.executor_option),
        workers=arguments.workers,
        seed=arguments.seed,
    )
    if manifest is None:
        print(f"{arguments.output}: in Slurm's queue; the files are whole when manifest.json is there")
        return
    print(table(load_report(arguments.output)))
    print(
        f"{arguments.output}: {manifest.tokens:,} tokens of {manifest.documents:,} documents, "
        f"{manifest.text_bytes / manifest.tokens:.2f} bytes a token"
    )


def train(arguments: argparse.Namespace) -> None:
    from codegen_jax.config import load_config

    config = load_config(arguments.config, arguments.overrides)
    from codegen_jax.training.loop import train

    train(config)


def show(arguments: argparse.Namespace) -> None:
    from codegen_jax.config import load_config
    from codegen_jax.data.show import show

    for text in show(load_config(arguments.config, arguments.overrides), arguments.step, arguments.row):
        print(text)


def plan(arguments: argparse.Namespace) -> None:
    from codegen_jax.config import load_config
    from codegen_jax.planning.fit import fit, settings
    from codegen_jax.planning.plan import make_plan
    from codegen_jax.planning.plan_report import describe, plot
    from codegen_jax.planning.slices import parse_slice

    config, tpu = load_config(arguments.config, arguments.overrides), parse_slice(arguments.topology)
    require(arguments.slices > 0, f"--slices: {arguments.slices} must be positive")
    if arguments.mode == "decode":
        from codegen_jax.planning.decode_plan import plan_decode

        sizes = (arguments.rows, arguments.prompt_tokens, arguments.max_new_tokens)
        require(min(sizes) > 0, "--rows, --prompt-tokens, --max-new-tokens: must be positive")
        decoding = plan_decode(config.model, tpu, arguments.tensor, *sizes, arguments.quantize)
        print(json.dumps(decoding.to_dict()) if arguments.json else decoding)
        return
    if arguments.fit:
        config, _ = fit(config, tpu, arguments.slices, lambda line: print(line, file=sys.stderr))
        print(settings(config), file=sys.stderr)
    plan = make_plan(config, tpu, arguments.slices, dump_hlo=arguments.dump_hlo)
    print(json.dumps(plan.to_dict()) if arguments.json else describe(plan))
    if arguments.plot:
        plot(plan, arguments.plot)


def convert(arguments: argparse.Namespace) -> None:
    from codegen_jax.conversion.convert import convert
    from codegen_jax.data.tokenizer import load_tokenizer

    require(
        bool(arguments.tokenizer) or not arguments.whitespace_tokens,
        "--whitespace-tokens: goes with --tokenizer; a source's own tokenizer is kept as it is",
    )
    tokenizer = load_tokenizer(arguments.tokenizer, arguments.whitespace_tokens) if arguments.tokenizer else None
    summary = convert(
        arguments.source,
        arguments.destination,
        to=arguments.to,
        dtype=arguments.dtype,
        mp_num=arguments.mp_num,
        tokenizer=tokenizer,
        proof=arguments.verify,
    )
    print(
        f"{arguments.destination}: {summary.parameters:,} parameters, {summary.nbytes / 1e9:,.2f} GB of "
        f"{' and '.join(summary.dtypes)} in {summary.seconds:.1f} s, peak memory {summary.peak_bytes / 2**30:.2f} GiB"
    )
    if summary.agreement is not None:
        print(f"verified: {summary.agreement}")


def generate(arguments: argparse.Namespace) -> None:
    from codegen_jax.inference.generate import Options

    names = ("max_new_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "num_samples", "stop")
    names += ("truncate", "logprobs", "num_guesses", "seed")
    options = {name: getattr(arguments, name) for name in names} | {"stop_strings": arguments.stop_string}
    require(not arguments.stream or len(arguments.prompt) == 1, "--stream: one completion of one prompt at a time")
    require(not (arguments.stream and arguments.json), "--stream: prints text; leave out --json")
    Options.of(options)  # bad ones are refused before a model is loaded
    model = load(arguments, arguments.model)
    if arguments.draft is not None:
        options["draft"] = "lookup" if arguments.draft == "lookup" else load(arguments, arguments.draft)
    if arguments.stream:
        pieces = model.stream(arguments.prompt[0], **options)
        print(arguments.prompt[0], end="", flush=True)
        for piece in pieces:
            print(piece, end="", flush=True)
        print()
        return
    completions = model.complete(arguments.prompt, **options)
    for completion in completions:
        if arguments.json:
            given = {name: value for name, value in dataclasses.asdict(completion).items() if value is not None}
            if arguments.draft is None:
                del given["proposed"], given["accepted"]
            print(json.dumps(given))
        else:
            print(completion.prompt + completion.completion)
    if proposed := sum(completion.proposed for completion in completions):
        accepted = sum(completion.accepted for completion in completions)
        print(f"codegen-jax: {accepted:,} of {proposed:,} guesses held: {accepted / proposed:.0%}", file=sys.stderr)


def perplexity(arguments: argparse.Namespace) -> None:
    from codegen_jax.evaluation.perplexity import evaluate

    quantize = arguments.quantize

    def measure(name: str | None) -> "Perplexity":
        arguments.quantize = name
        model = load(arguments, arguments.model)
        return evaluate(model, arguments.tokens, arguments.sequence_length, arguments.max_windows)

    results = {name or "whole": measure(name) for name in dict.fromkeys((None, quantize))}
    for name, result in results.items():
        if arguments.json:
            print(json.dumps({"weights": name} | dataclasses.asdict(result)))
        else:
            print(f"{name}: {result}" if quantize else result)
    if quantize and not arguments.json:
        worse = results[quantize].perplexity / results["whole"].perplexity - 1
        print(f"{quantize} raises the perplexity by {worse:.3%}")
