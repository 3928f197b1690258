"""Each format becomes the same training text from JSON lines, Parquet and the hub; wrong rows are named."""

import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from codegen_jax.data.chat_template import DEFAULT, ChatTemplate
from codegen_jax.data.formats import Messages, Unusable
from codegen_jax.data.packing import Examples
from codegen_jax.data.prepare import prepare
from codegen_jax.data.prepare_report import load_report, table
from codegen_jax.data.show import SEPARATOR, render
from codegen_jax.data.tokens import TokenFiles
from codegen_jax.errors import UserError

FOLDER = Path(__file__).parent / "formats"
FORMATS = ("text", "pairs", "messages", "alpaca")


def as_text(folder):
    """The documents of a folder as `data show` prints them, sorted, without numbers and separators."""
    files = TokenFiles(folder)
    rows, tokenizer = Examples(files, 1000, packed=False), files.tokenizer()
    shown = [render(row[row != -1], tokenizer, "#") for row in (rows[number] for number in range(len(rows)))]
    return "\n".join(sorted(text.replace(SEPARATOR, "") for text in shown)) + "\n"


def records(format):
    return [json.loads(line) for line in (FOLDER / f"{format}.jsonl").read_text().splitlines()]


def usable(format):
    """The records that Parquet can hold: those of the same types."""
    is_usable = {
        "text": lambda r: True,
        "pairs": lambda r: isinstance(r["prompt"], str) and "completion" in r,
        "messages": lambda r: all("content" in message for message in r["messages"]),
        "alpaca": lambda r: isinstance(r["output"], str),
    }
    return [record for record in records(format) if is_usable[format](record)]


@pytest.mark.parametrize("format", FORMATS)
def test_each_format_gives_the_golden_text(tmp_path, tokenizer, format):
    pack = {"pack": True, "sequence_length": 300} if format == "text" else {}
    prepare([str(FOLDER / f"{format}.jsonl")], str(tmp_path / "json"), tokenizer, format=format, **pack)
    assert as_text(tmp_path / "json") == (FOLDER / f"{format}.txt").read_text()
    table_ = pyarrow.Table.from_pylist(usable(format))
    (tmp_path / "set").mkdir()
    parquet.write_table(table_, tmp_path / "set/a.parquet")
    for name, source in (("parquet", f"{tmp_path}/set/a.parquet"), ("hub", f"hub:{tmp_path}/set")):
        prepare([source], str(tmp_path / name), tokenizer, format=format, **pack)
        assert as_text(tmp_path / name) == as_text(tmp_path / "json")


@pytest.mark.parametrize(
    ("format", "dropped"),
    [
        ("text", {}),
        (
            "pairs",
            {
                "empty completion": 3,
                "field completion is null": 4,
                "no field completion": 5,
                "field prompt is a list": 6,
            },
        ),
        (
            "messages",
            {
                "no message of role assistant": 3,
                "field messages is an empty list": 4,
                "no field content in message 1": 5,
                "a character from U+FDD0 to U+FDEF, which are reserved": 6,
                "empty content in message 2, the assistant's": 7,
            },
        ),
        ("alpaca", {"empty instruction": 4, "field output is a number": 5}),
    ],
)
def test_wrong_rows_are_counted_and_named_by_file_and_line(tmp_path, tokenizer, format, dropped):
    shard = str(FOLDER / f"{format}.jsonl")
    prepare([shard], str(tmp_path / "out"), tokenizer, format=format)
    report = load_report(tmp_path / "out")
    assert report["stages"][0]["dropped"] == dict.fromkeys(dropped, 1)
    for reason, line in dropped.items():
        assert (report["first"][reason]["shard"], report["first"][reason]["line"]) == (shard, line)
        assert f"dropped while reading: 1 line ({reason}); the first is line {line} of {shard}: " in table(report)


def test_fields_are_renamed(tmp_path, tokenizer):
    renamed = {"prompt": "q", "completion": "a"}
    data = tmp_path / "0.jsonl"
    data.write_text("".join(json.dumps({renamed[k]: v for k, v in r.items()}) + "\n" for r in usable("pairs")))
    prepare([str(data)], str(tmp_path / "out"), tokenizer, format="pairs", fields=renamed)
    assert as_text(tmp_path / "out") == (FOLDER / "pairs.txt").read_text()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "pairs", "fields": {"answer": "a"}}, "fields: --format pairs has no field answer; its fields are"),
        ({"format": "pairs", "text_field": "a"}, "text_field: not for --format pairs; name its fields with --fields"),
        ({"fields": {"text": "a"}}, "fields: not for --format text; name its field with --text-field"),
        ({"format": "alpaca"}, "fields: {shard} has no field instruction; choose one of prompt, completion"),
        ({"format": "pairs", "fields": {"prompt": "p"}}, "fields: {shard} has no field p; choose one of prompt, compl"),
        ({"format": "csv"}, "format: must be one of text, pairs, messages, alpaca, got csv"),
        ({"format": "pairs", "loss": "none"}, "loss: must be one of completions, all, got none"),
        ({"format": "pairs", "template": "x"}, "template: requires --format messages, got pairs"),
        ({"format": "messages", "template": "x"}, "template: does not mark the assistant's turns"),
        ({"format": "pairs", "fim_rate": 0.5}, "fim_rate: requires --format text, got pairs"),
        ({"fim_rate": 1.5}, "fim_rate: must be from 0 to 1, got 1.5"),
        ({"format": "pairs", "sequence_length": 0}, "sequence_length: must be positive, got 0"),
        ({"loss": "all"}, "loss: requires a format with completions, got text"),
        ({"sequence_length": 99}, "sequence_length: requires --pack or a format with completions, got text"),
        ({"fim": "psm"}, "fim: requires --fim-rate"),
        ({"too_long": "drop"}, "too_long: requires a format with completions, got text"),
    ],
)
def test_settings_that_do_not_go_together_are_named(tmp_path, tokenizer, settings, message):
    shard = tmp_path / "0.jsonl"
    shard.write_text(json.dumps(usable("pairs")[0]) + "\n")
    with pytest.raises(UserError) as error:
        prepare([str(shard)], str(tmp_path / "out"), tokenizer, **settings)
    assert str(error.value).startswith(message.format(shard=shard))


def test_messages_nested_too_deeply_are_a_reason():
    nested: list = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(Unusable, match="messages nested too deeply"):
        Messages(ChatTemplate(DEFAULT)).read({"messages": nested})
