"""Prompts from the command line, a file or standard input."""

import argparse
import json
import sys

from codegen_jax.cli.arguments import Parser
from codegen_jax.errors import UserError, require

STANDARD_INPUT = "-"


def add_prompts(parser: Parser) -> None:
    parser.add_argument("--prompt", action="append", metavar="TEXT", help="a prompt; may be repeated")
    parser.add_argument(
        "--prompt-file",
        metavar="FILE",
        help="read prompts from a text file, one per line, or from standard input (-); multi-line prompts need a "
        'FILE.jsonl with "TEXT" or {"prompt": "TEXT"} on each line; blank lines are skipped',
    )


def read_prompts(arguments: argparse.Namespace) -> list[str]:
    """The prompts given by the arguments, in order.

    Raises:
        UserError: if both --prompt and --prompt-file are given, or neither; or if the file can't be read, contains no
            prompts or has an invalid line.
    """
    prompts, path = arguments.prompt, arguments.prompt_file
    if path is None:
        require(prompts is not None, f"prompt: required without --prompt-file; see {arguments.parser.prog} --help")
        return prompts
    require(prompts is None, "prompt_file: cannot be combined with --prompt")
    is_input = path == STANDARD_INPUT
    from codegen_jax.mistaken_paths import decode, read_text

    text = decode("standard input", sys.stdin.buffer.read()) if is_input else read_text(path)
    lines = [(number, line.removesuffix("\r")) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    require(len(lines) > 0, f"{'standard input' if is_input else path}: contains no prompts")
    if path.endswith(".jsonl"):
        return [_parse_json(f"{path}: line {number}", line) for number, line in lines]
    return [line for _, line in lines]


def _parse_json(where: str, line: str) -> str:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: not valid JSON ({error})") from error
    prompt = value.get("prompt") if isinstance(value, dict) else value
    if not isinstance(prompt, str):
        raise UserError(f'{where}: must be "TEXT" or {{"prompt": "TEXT"}}')
    return prompt
