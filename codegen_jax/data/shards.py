"""Read documents from raw shards: JSON lines (optionally compressed) or .parquet, local or by URL, and hub datasets."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import fsspec
import orjson
from backports import zstd
from fsspec.compression import compr
from fsspec.utils import infer_compression

from codegen_jax.data.formats import Format, Text, Unusable, json_type
from codegen_jax.data.inputs import HUB
from codegen_jax.data.parts import Part
from codegen_jax.errors import UserError
from codegen_jax.mistaken_paths import describe_placeholder
from codegen_jax.storage import is_remote

PLAIN = Text()
BOM = b"\xef\xbb\xbf"
# file types that are not plain JSON lines: first bytes, the suffix under which they are expected, the message
FILE_TYPES = (
    (b"\xff\xfe", None, "UTF-16 text; convert it to UTF-8"),
    (b"\xfe\xff", None, "UTF-16 text; convert it to UTF-8"),
    (b"\x1f\x8b", ".gz", "compressed with gzip; rename it to end in .gz"),
    (b"\x28\xb5\x2f\xfd", ".zst", "compressed with zstd; rename it to end in .zst"),
    (b"\xfd7zXZ", ".xz", "compressed with xz; rename it to end in .xz"),
    (b"BZh", ".bz2", "compressed with bzip2; rename it to end in .bz2"),
    (b"PK\x03\x04", None, "a zip archive; unpack it"),
    (b"PAR1", ".parquet", "a Parquet file; rename it to end in .parquet"),
    (b"[", None, "a single JSON array; write one object per line"),
)


class RawDocument(NamedTuple):
    """One document of a shard.

    Attributes:
        text: the record's own text, which can be encoded as UTF-8.
        source: meta.pile_set_name, or "unknown".
        path: the file that the document came from: meta.path, else the field "path", else "".
        line: line or row number in the shard, starting at 1.
        parts: what is encoded: the text, with what the format adds to it, as parts that are trained or not.
    """

    text: str
    source: str
    path: str
    line: int
    parts: list[Part]


class Skipped:
    """The lines or rows of a shard that contain no document.

    Attributes:
        counts: number of lines, by reason.
        first: the first line for each reason: {"line": its number, starting at 1, "starts": its first 200 characters}.
    """

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.first: dict[str, dict[str, Any]] = {}

    def add(self, reason: str, line: int, content: bytes | dict[str, Any]) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + 1
        if self.counts[reason] == 1:
            starts = content.decode(errors="replace").rstrip() if isinstance(content, bytes) else repr(content)
            self.first[reason] = {"line": line, "starts": starts[:200]}


class Record(NamedTuple):
    """A line of JSON, or a row.

    Attributes:
        line: line or row number, starting at 1.
        content: the bytes of the line, or the fields of the row.
        value: the fields, or the reason why the line has none.
    """

    line: int
    content: bytes | dict[str, Any]
    value: dict[str, Any] | str


def read_documents(
    shard: str,
    skipped: Skipped,
    form: Format = PLAIN,
    progress: Callable[[float], object] = lambda fraction: None,
) -> Iterator[RawDocument]:
    """Yield the documents of a shard; lines without a document are counted in `skipped`.

    Args:
        form: how a JSON object or row becomes a document.
        progress: called with the fraction of the shard that has been read, where it is known.

    Raises:
        UserError: if the shard can't be read to its end (for example, its compressed data is truncated), has lines
            but no JSON objects, or has objects but none with the fields.
    """
    lines, objects = 0, 0
    fields: list[str] = []
    for line, content, record in read_records(shard, form, progress):
        lines += 1
        if isinstance(record, str):
            skipped.add(record, line, content)
            continue
        objects += 1
        fields = fields or list(record)
        try:
            text, parts = form.read(record)
        except Unusable as reason:
            skipped.add(str(reason), line, content)
            continue
        meta = _meta(record)
        path = meta.get("path") or record.get("path") or ""
        yield RawDocument(text, str(meta.get("pile_set_name") or "unknown"), str(path), line, parts)
    if lines and not objects:
        what = describe_file(shard)
        raise UserError(
            f"{shard}: none of its {lines} line(s) is a JSON object; "
            + (f"the file is {what}" if what else f"line {_first(skipped)}; restore or remove the file")
        )
    for column in form.columns:
        if objects and skipped.counts.get(f"no field {column}") == objects:
            _raise_no_field(shard, form, column, fields)


def _raise_no_field(shard: str, form: Format, column: str, fields: list[str]) -> None:
    raise UserError(f"{form.option}: {shard} has no field {column}; choose one of {', '.join(fields)[:300]}")


def _first(skipped: Skipped) -> str:
    reason, first = next(iter(skipped.first.items()))
    return f"{first['line']} is {reason}: {first['starts'][:60]!r}"


def _meta(record: dict[str, Any]) -> dict[str, Any]:
    """The field meta; some copies of the Pile store it as a JSON string."""
    meta = record.get("meta")
    if isinstance(meta, str):
        meta = _parse(meta.encode(errors="surrogatepass"))
    return meta if isinstance(meta, dict) else {}


def read_records(
    shard: str, form: Format | None = None, progress: Callable[[float], object] = lambda fraction: None
) -> Iterator[Record]:
    """Yield the lines or rows of a shard.

    Args:
        shard: as listed by `list_shards`.
        form: in Parquet files, read only this format's columns, meta and path; None reads all columns.
        progress: see `read_documents`.

    Raises:
        UserError: if the shard can't be read to its end (for example, its compressed data is truncated).
    """
    try:
        yield from _records(shard, form, progress)
    except UserError:
        raise
    except Exception as error:  # each codec, Parquet and hub library raises its own exceptions
        what = describe_file(shard)
        reason = f"it is {what}" if what else f"{error or type(error).__name__}; restore or remove it"
        raise UserError(f"{shard}: can't be read ({reason})") from error


def _records(shard: str, form: Format | None, progress: Callable[[float], object]) -> Iterator[Record]:
    if shard.startswith(HUB):
        from datasets import load_dataset

        name, _, split = shard.removeprefix(HUB).partition("@")
        for number, row in enumerate(load_dataset(name, split=split or "train", streaming=True), 1):
            yield Record(number, row, row)
    elif shard.endswith(".parquet"):
        yield from _rows(shard, form, progress)
    else:
        with _open(shard) as stored, _decompressed(stored, shard) as file:
            size = getattr(stored, "size", None)  # unknown for some URLs
            # some files end lines with a bare CR; inside JSON strings it is always escaped as \r
            lines = (part for line in file for part in (line.split(b"\r") if b"\r" in line[:-2] else [line]))
            for number, line in enumerate(lines, 1):
                if size:
                    progress(stored.tell() / size)
                if line.strip():
                    yield Record(number, line, _parse(line))


def _rows(shard: str, form: Format | None, progress: Callable[[float], object]) -> Iterator[Record]:
    from pyarrow import parquet

    with _open(shard) as file:
        table = parquet.ParquetFile(file)
        columns = table.schema_arrow.names
        if form is not None:
            for column in form.columns:
                if column not in columns:
                    _raise_no_field(shard, form, column, columns)
            columns = [name for name in (*form.columns, *form.optional, "meta", "path") if name in columns]
        number = 0
        for rows in table.iter_batches(columns=columns, batch_size=1000):
            progress((number + len(rows)) / table.metadata.num_rows)
            for row in rows.to_pylist():
                number += 1
                yield Record(number, row, row)


@contextmanager
def _open(shard: str) -> Iterator[Any]:
    """Open a file for reading. fsspec.open is not used, since it would expand glob characters in a name."""
    files, path = fsspec.core.url_to_fs(shard) if is_remote(shard) else (fsspec.filesystem("file"), shard)
    with files.open(path, "rb") as file:
        yield file


@contextmanager
def _decompressed(file: Any, shard: str) -> Iterator[Any]:
    """The content of an open file, decompressed according to its suffix."""
    codec = infer_compression(shard)
    if shard.endswith(".zst"):
        # reads multiple frames, fails on a truncated one, and allows windows of up to 2 GiB (zstd --long=31)
        with zstd.ZstdFile(file, options={int(zstd.DecompressionParameter.window_log_max): 31}) as content:
            yield content
    elif codec is not None:
        open_codec: Any = compr[codec]  # pyright: ignore[reportArgumentType]
        with open_codec(file, mode="r") as content:
            yield content
    else:
        yield file


def _parse(line: bytes) -> dict[str, Any] | str:
    """The JSON object in a line, or the reason why the line has none."""
    line = line.removeprefix(BOM)
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        try:
            # orjson rejects NaN, Infinity, 1e999, very long numbers and lone surrogates
            record = json.loads(line.decode(), parse_int=_parse_int)
        except UnicodeDecodeError:
            return "not UTF-8"
        except RecursionError:
            return "JSON nested too deeply"
        except ValueError:
            is_truncated = line.lstrip().startswith(b"{") and not line.rstrip().endswith(b"}")
            return "a truncated JSON object" if is_truncated else "not JSON"
    return record if isinstance(record, dict) else f"{json_type(record)}, not a JSON object"


def _parse_int(digits: str) -> int | float:
    """Parse an integer. Numbers of 19 or more digits become floats, since Python refuses to parse very long ones."""
    return int(digits) if len(digits) < 19 else float(digits)


def describe_file(shard: str) -> str:
    """What a file without JSON lines appears to be, judging by its first bytes, and the remedy; "" if unknown."""
    try:
        for is_raw in (True, False):
            with _open(shard) as stored, nullcontext(stored) if is_raw else _decompressed(stored, shard) as file:
                start = file.read(64).lstrip()
            if what := describe_placeholder(start):
                return what
            for magic, suffix, message in FILE_TYPES:
                if start.startswith(magic) and not (suffix and shard.endswith(suffix)):
                    return message
    except Exception:  # from any codec, or because a hub dataset is not a file
        pass
    return ""
