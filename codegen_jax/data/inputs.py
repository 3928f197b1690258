"""Resolve the inputs of a preparation to files, and record which files are skipped and why."""

import glob
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import fsspec

from codegen_jax.errors import UserError, require
from codegen_jax.hub import not_found, refusal
from codegen_jax.storage import is_remote

HUB = "hub:"
SUFFIXES = ".jsonl or .ndjson (also with .zst, .gz, .xz or .bz2 added), .json with one of these added, or .parquet"
SHARD = re.compile(r".\.((jsonl|ndjson)(\.(zst|gz|xz|bz2))?|json\.(zst|gz|xz|bz2)|parquet)$")
NAMED = re.compile(SHARD.pattern.replace("|parquet", "|json|parquet"))  # a .json named explicitly is read as JSON lines


@dataclass
class Inputs:
    """The shards to read and the files to skip.

    Attributes:
        shards: files, URLs and hub datasets (as given), sorted within each input.
        sizes: size of each shard in bytes; 0 for a hub dataset.
        skipped: skipped files, by reason.
    """

    shards: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    skipped: dict[str, list[str]] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Total size of the files."""
        return sum(self.sizes)

    def record(self) -> dict[str, Any]:
        """The entry for report.json: file counts by suffix, total bytes, and the number of skipped files and the first
        one, by reason."""
        skipped = {reason: {"files": len(paths), "first": paths[0]} for reason, paths in sorted(self.skipped.items())}
        return {"files": dict(Counter(map(_suffix, self.shards))), "bytes": self.nbytes, "left": skipped}

    def __str__(self) -> str:
        record = self.record()
        counts = ", ".join(f"{count:,} {suffix}" for suffix, count in record["files"].items())
        text = f"reading {counts} ({self.nbytes / 1e6:,.1f} MB)"
        for reason, skipped in record["left"].items():
            text += f"; skipping {skipped['files']:,} {reason} ({skipped['first']}{', ...' * (skipped['files'] > 1)})"
        return text


class Found(NamedTuple):
    """A file that was found; `reason` is why it is skipped, or empty if it is read."""

    path: str
    size: int
    reason: str = ""


def list_shards(inputs: list[str]) -> Inputs:
    """List every shard in the inputs.

    Args:
        inputs: files, folders, globs or fsspec URLs with one of the `SUFFIXES`, or hub datasets as "hub:OWNER/NAME"
            (split train) or "hub:OWNER/NAME@SPLIT". An existing path is used as is, even if it contains glob
            characters; only other inputs are tried as globs. Hidden files are skipped. Linked folders are followed,
            each once.

    Raises:
        UserError: if an input contains no shard, the hub does not provide a dataset, or two inputs name the same file.
    """
    result = Inputs()
    names: dict[str, str] = {}  # path as listed, by the real file it resolves to
    for source in inputs:
        if source.startswith(HUB):
            name = source.removeprefix(HUB).partition("@")[0]
            reason = None if Path(name).exists() else refusal(name, "dataset")
            if reason is not None:
                raise UserError(f"{HUB}{not_found(name, reason)}")
            found = [Found(source, 0)]
        else:
            try:
                found = list(_remote(source) if is_remote(source) else _local(source))
            except (OSError, ValueError, ImportError) as error:
                raise UserError(f"{source}: can't be listed ({error})") from error
        shards = [file for file in sorted(found) if not file.reason]
        for path, _, _ in shards:
            real = path if is_remote(path) or path.startswith(HUB) else os.path.realpath(path)
            require(real not in names, f"{path}: the same file as {names.get(real)}; name each file once")
            names[real] = path
        if not shards:
            others = Counter(file.reason for file in found)
            only = ", ".join(f"{count:,} {reason}" for reason, count in sorted(others.items()))
            raise UserError(f"{source}: no shards found{only and f', only {only}'}; shard names end in {SUFFIXES}")
        result.shards += [file.path for file in shards]
        result.sizes += [file.size for file in shards]
        for path, _, reason in sorted(found):
            if reason:
                result.skipped.setdefault(reason, []).append(path)
    return result


def _local(source: str) -> Iterator[Found]:
    if os.path.lexists(source):
        named = [source]
    else:
        named = sorted(glob.glob(source, recursive=True)) if glob.has_magic(source) else []
    for path in named:
        if os.path.isdir(path):
            yield from _walk(path)
        else:
            yield _file(path, NAMED)


def _walk(root: str) -> Iterator[Found]:
    folders_seen, files_seen = set[str](), set[str]()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in folders_seen:
            folders.clear()
            yield Found(folder, 0, "linked folder(s) already read under another name")
            continue
        folders_seen.add(real)
        for name in [name for name in folders if name.startswith(".")]:
            folders.remove(name)
            yield Found(os.path.join(folder, name), 0, "hidden")
        folders.sort(key=lambda name: (os.path.islink(os.path.join(folder, name)), name))
        for name in sorted(files, key=lambda name: (os.path.islink(os.path.join(folder, name)), name)):
            path = os.path.join(folder, name)
            found = _file(path, SHARD)
            if not found.reason and os.path.realpath(path) in files_seen:
                found = Found(path, 0, "file(s) already read under another name")
            files_seen.add(os.path.realpath(path))
            yield found


def _file(path: str, pattern: re.Pattern[str]) -> Found:
    name = os.path.basename(path)
    if name.startswith(".") and pattern is SHARD:
        return Found(path, 0, "hidden")
    if not os.path.exists(path):
        return Found(path, 0, "broken link(s)")
    if not pattern.search(name):
        return Found(path, 0, _suffix(name))
    size = os.path.getsize(path)
    return Found(path, size, "" if size else "empty")


def _remote(source: str) -> Iterator[Found]:
    files, root = fsspec.core.url_to_fs(source)
    if files.isdir(root):
        found = files.find(root, detail=True).values()
    elif files.exists(root):
        found = [files.info(root)]
    else:
        matches = files.glob(root, detail=True) if glob.has_magic(root) else {}
        found = [info for info in matches.values() if info["type"] == "file"]
    for info in found:
        path, size = files.unstrip_protocol(info["name"]), info.get("size") or 0
        inside = info["name"].removeprefix(root.rstrip("/"))
        if any(part.startswith(".") for part in inside.split("/")):
            yield Found(path, 0, "hidden")
        elif not NAMED.search(info["name"]):
            yield Found(path, 0, _suffix(path))
        else:
            yield Found(path, size, "" if size else "empty")


def _suffix(path: str) -> str:
    """The suffix of a file, such as .jsonl.zst for `a.b.jsonl.zst`; the name of a hub dataset is returned unchanged."""
    if path.startswith(HUB):
        return path
    name = os.path.basename(path)
    match = NAMED.search(name)
    return match[0][1:] if match else Path(name).suffix or "file(s) without a suffix"
