"""The verbs tokenizer train, prepare and data show: turn raw shards into token files, and print training data."""

import argparse
from typing import Any

from codegen_jax.cli.arguments import Parser, add_config, number, read_config, whole_number
from codegen_jax.errors import require


def add_verbs(verbs: Any) -> None:
    tokenizer = verbs.add_parser("tokenizer", help="train a tokenizer for code").add_subparsers(
        required=True, metavar="VERB"
    )
    verb = tokenizer.add_parser("train", help="train a sentencepiece tokenizer for code on raw shards")
    add_shards(verb, "new or empty output folder")
    verb.add_argument("--vocab-size", type=whole_number, required=True, metavar="N", help="size of the vocabulary")
    verb.add_argument(
        "--max-megabytes",
        type=number,
        default=100,
        metavar="N",
        help="MB of text to train on, from the start of the shards (default: %(default)s)",
    )
    verb.calls(train_tokenizer)

    verb = verbs.add_parser("prepare", help="filter, deduplicate and tokenize raw shards into token files")
    add_shards(verb, "new or empty output folder, or that of an interrupted prepare, which is resumed")
    verb.add_argument("--tokenizer", required=True, metavar="T", help="a tokenizer: a folder, file or hub id")
    verb.add_argument(
        "--whitespace-tokens", action="store_true", help="add CodeGen's 38 whitespace tokens to a GPT-2 vocabulary"
    )
    add_format(verb)
    verb.add_argument(
        "--special-tokens",
        action="store_true",
        help="encode <|endoftext|> and the like in documents as special tokens, not as text",
    )
    verb.add_argument(
        "--filters",
        choices=("none", "code"),
        default="none",
        help="code: apply the CodeGen paper's filters for code (default: %(default)s)",
    )
    verb.add_argument(
        "--extensions",
        nargs="+",
        metavar=".EXT",
        help="file extensions that --filters code keeps (default: those of C, C++, Go, Java, JavaScript and Python)",
    )
    verb.add_argument(
        "--dedup",
        choices=("none", "exact", "minhash"),
        default="none",
        help="exact: drop repeated documents; minhash: also drop near-duplicates (default: %(default)s)",
    )
    verb.add_argument(
        "--decontaminate",
        nargs="+",
        default=[],
        metavar="FILE",
        help="drop documents that contain prompts or solutions of these benchmarks (JSON lines)",
    )
    verb.add_argument(
        "--executor",
        choices=("local", "slurm", "ray"),
        default="local",
        help="where to run the work, one task per shard (default: %(default)s)",
    )
    verb.add_argument(
        "--executor-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an argument for datatrove's executor, such as Slurm's time or partition; may be given several times",
    )
    verb.add_argument(
        "--workers",
        type=whole_number,
        metavar="N",
        help="tasks to run in parallel (default: 1 locally, all on a cluster)",
    )
    verb.add_argument(
        "--seed", type=whole_number, default=0, metavar="N", help="seed of the document shuffle (default: %(default)s)"
    )
    verb.calls(prepare)

    data = verbs.add_parser("data", help="inspect training data").add_subparsers(required=True, metavar="VERB")
    verb = data.add_parser("show", help="print the batch that a training step sees")
    add_config(verb)
    verb.add_argument("--step", type=whole_number, required=True, metavar="N", help="step number, as in the log")
    verb.add_argument("--row", type=whole_number, metavar="R", help="row of the batch, from 0 (default: all rows)")
    verb.calls(show, accepts_fields=True)


def add_format(parser: Parser) -> None:
    """Add the arguments about the format of the data, and about examples."""
    parser.add_argument(
        "--format",
        choices=("text", "pairs", "messages", "alpaca"),
        default="text",
        help="text: documents; pairs: prompt and completion; messages: conversations, a list of role and content; "
        "alpaca: instruction, input and output (default: %(default)s)",
    )
    parser.add_argument(
        "--fields",
        metavar="NAME=FIELD,...",
        help="the data's names for the format's fields, such as prompt=question,completion=answer",
    )
    parser.add_argument(
        "--template",
        metavar="FILE",
        help="a Jinja chat template for messages, with {%% generation %%} around the assistant's turns (default: the "
        "tokenizer's, else that of --show-template)",
    )
    parser.add_argument("--show-template", action=ShowTemplate, nargs=0, help="print the default template and exit")
    parser.add_argument(
        "--loss",
        choices=("completions", "all"),
        default="completions",
        help="which tokens of pairs, messages and alpaca are trained (default: %(default)s)",
    )
    parser.add_argument(
        "--pack",
        action="store_true",
        help="put several examples or documents into a row, which do not see each other; requires "
        "--data.document_mask true in training",
    )
    parser.add_argument(
        "--sequence-length",
        type=whole_number,
        default=2048,
        metavar="N",
        help="tokens trained on per row; data.sequence_length of the run must not be less (default: %(default)s)",
    )
    parser.add_argument(
        "--too-long",
        choices=("cut", "drop"),
        default="cut",
        help="cut: longer examples lose the beginning of the prompt, or are dropped if the completion does not fit; "
        "drop: drop them (default: %(default)s)",
    )
    parser.add_argument(
        "--fim-rate",
        type=number,
        default=0.0,
        metavar="X",
        help="share of the documents rearranged for fill-in-the-middle (default: %(default)s)",
    )
    parser.add_argument(
        "--fim",
        choices=("psm", "spm", "mixed"),
        default="mixed",
        help="psm: prefix, suffix, middle; spm: suffix, prefix, middle; mixed: either (default: %(default)s)",
    )


class ShowTemplate(argparse.Action):
    """Print the default chat template and exit."""

    def __call__(self, parser: Any, *_: Any) -> None:
        from codegen_jax.data.chat_template import DEFAULT

        print(DEFAULT, end="")
        parser.exit()


def parse_fields(text: str | None) -> dict[str, str]:
    """The names in --fields.

    Raises:
        UserError: if an entry is not NAME=FIELD.
    """
    pairs = [entry.split("=", 1) for entry in text.split(",")] if text else []
    for pair in pairs:
        require(len(pair) == 2 and all(pair), f"fields: must be NAME=FIELD,..., got {text!r}")
    return {name: field for name, field in pairs}


def add_shards(parser: Parser, output: str) -> None:
    """Add the input and output arguments; `output` is the help text of --output."""
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="JSON lines (.jsonl, optionally with .zst, .gz, .xz or .bz2) or .parquet: a file, folder, glob or URL; or "
        "a hub dataset, hub:OWNER/NAME[@SPLIT]",
    )
    parser.add_argument(
        "--text-field",
        default="text",
        metavar="NAME",
        help="field or column that contains the text (default: %(default)s)",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help=output)


def train_tokenizer(arguments: argparse.Namespace) -> None:
    from codegen_jax.data.train_tokenizer import train_tokenizer

    tokenizer = train_tokenizer(
        arguments.inputs, arguments.output, arguments.vocab_size, arguments.max_megabytes, arguments.text_field
    )
    print(f"{arguments.output}: {tokenizer.vocab_size} ids, {tokenizer.fingerprint}")


def prepare(arguments: argparse.Namespace) -> None:
    from codegen_jax.data.executors import parse_options
    from codegen_jax.data.filters import CODE_EXTENSIONS
    from codegen_jax.data.prepare import prepare
    from codegen_jax.data.prepare_report import load_report, table
    from codegen_jax.data.tokenizer import load_tokenizer
    from codegen_jax.mistaken_paths import read_text

    require(arguments.filters == "code" or not arguments.extensions, "extensions: requires --filters code")
    manifest = prepare(
        arguments.inputs,
        arguments.output,
        load_tokenizer(arguments.tokenizer, arguments.whitespace_tokens),
        text_field=arguments.text_field,
        format=arguments.format,
        fields=parse_fields(arguments.fields),
        template=arguments.template and read_text(arguments.template),
        loss=arguments.loss,
        pack=arguments.pack,
        sequence_length=arguments.sequence_length,
        too_long=arguments.too_long,
        fim_rate=arguments.fim_rate,
        fim=arguments.fim,
        special_tokens=arguments.special_tokens,
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
        print(f"{arguments.output}: submitted to Slurm; the files are complete once manifest.json exists")
        return
    print(table(load_report(arguments.output)))
    print(
        f"{arguments.output}: {manifest.tokens:,} tokens"
        + (
            f", {manifest.trained_tokens:,} of them trained, in {manifest.documents:,} examples"
            if manifest.has_examples
            else f" in {manifest.documents:,} documents, {manifest.text_bytes / manifest.tokens:.2f} bytes per token"
        )
    )


def show(arguments: argparse.Namespace) -> None:
    from codegen_jax.data.show import show

    for text in show(read_config(arguments), arguments.step, arguments.row):
        print(text)
