"""Messages about a path that does not exist, is a parent of the right folder, or is only a placeholder for a file."""

import os
import re
from collections.abc import Callable
from pathlib import Path

from etils import epath

from codegen_jax.errors import UserError, require
from codegen_jax.fields import did_you_mean
from codegen_jax.storage import is_remote, open_path

PLACEHOLDERS = {  # placeholders for files that were not downloaded, by their first bytes in lower case
    b"version https://git-lfs.github.com/spec/": "a Git LFS pointer, not the file itself; run git lfs pull",
    b"/annex/objects/": "a git-annex pointer, not the file itself; run git annex get",
    b"<!doctype html": "a web page, not the file itself; download it again (URLs of the hub's files contain /resolve/)",
    b"<html": "a web page, not the file itself; download it again (URLs of the hub's files contain /resolve/)",
}
VERSION = re.compile(r"(?:checkpoint-)?(\d+)|[0-9a-f]{40}")  # a run's checkpoint, or a commit in the hub cache


def missing(path: epath.PathLike) -> str:
    """The message for a path that does not exist: what its nearest existing parent contains, and a similar name."""
    name = os.fspath(path)
    expanded = os.path.expanduser(os.path.expandvars(name))
    if expanded != name:
        return f"{name}: no such file or folder; ~ and $ are not expanded here, use {expanded}"
    if is_remote(name):
        return f"{name}: no such file or folder"
    parent = next((parent for parent in Path(name).parents if parent.is_dir()), None)
    if parent is None:  # for "." and "/"
        return f"{name}: no such file or folder"
    wanted = Path(name).relative_to(parent).parts[0]
    names = sorted(file.name for file in parent.iterdir() if not file.name.startswith("."))
    here = "this folder" if parent == Path() else str(parent)
    return f"{name}: no such file or folder; {here} {contains(names)}{did_you_mean(wanted, names)}"


def read_text(path: epath.PathLike) -> str:
    """Read the text of a file named by a user.

    Raises:
        UserError: if the file does not exist, can't be read or is not text.
    """
    file = open_path(path)
    require(file.exists(), missing(path))
    require(not file.is_dir(), f"{path}: is a folder, but must be a file")
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror or error})") from error
    return decode(path, content)


def decode(path: epath.PathLike, content: bytes) -> str:
    """Decode a file's content as UTF-8, without a BOM; raise `UserError` if it is not text."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start} is {content[error.start]:#04x})") from error


def contains(names: list[str], most: int = 8) -> str:
    """Describe the content of a folder, listing at most `most` names."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"contains {', '.join(names[:most])}{more}" if names else "is empty"


def instead(folder: Path, matches: Callable[[Path], bool]) -> str:
    """ "; use FOLDER" if a matching folder is found at most four levels below `folder`, else an empty string.

    If the matches are versions of the same thing, such as checkpoints of a run or cached revisions of a repository, the
    newest is suggested.
    """
    level, found = [folder], list[Path]()
    for _ in range(4):
        level = [below for above in level for below in _folders(above)][:1000]
        found += filter(matches, level)
        level = [below for below in level if below not in found]
    if not found:
        return ""
    found.sort(key=_age)
    newest = found[-1]
    are_versions = all(match.parent == newest.parent and VERSION.fullmatch(match.name) for match in found)
    names = ", ".join(map(str, found[:5]))
    return f"; use {newest}" if len(found) == 1 or are_versions else f"; use one of the folders in it, such as {names}"


def _age(folder: Path) -> tuple[bool, int, float]:
    """Sort key that is larger for newer versions."""
    main, step = folder.parent.parent / "refs/main", VERSION.fullmatch(folder.name)
    is_main = main.is_file() and main.read_text().strip() == folder.name
    return is_main, int(step[1] or 0) if step else 0, folder.stat().st_mtime


def _folders(folder: Path) -> list[Path]:
    try:
        return [Path(found.path) for found in os.scandir(folder) if found.is_dir()]
    except OSError:  # permission denied
        return []


def describe_placeholder(head: bytes) -> str | None:
    """Describe a placeholder (an LFS or git-annex pointer, a web page) and the remedy; None if it is not one.

    Args:
        head: the first 64 bytes or more of the file.
    """
    start = head.lstrip().lower()
    return next((description for prefix, description in PLACEHOLDERS.items() if start.startswith(prefix)), None)


def reject_placeholder(path: epath.PathLike) -> None:
    """Raise `UserError` if a file is only a placeholder for another."""
    with epath.Path(path).open("rb") as file:
        description = describe_placeholder(file.read(64))
    require(description is None, f"{path}: {description}")
