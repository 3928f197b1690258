"""Messages about a path that does not exist, is a parent of the right folder, or is only a placeholder for a file."""

import os
import re
from collections.abc import Callable
from pathlib import Path

from etils import epath

from codegen_jax.errors import UserError, require
from codegen_jax.fields import did_you_mean
from codegen_jax.storage import is_remote, open_path

STAND_INS = {  # placeholders for files that were not downloaded, by their first bytes in lower case
    b"version https://git-lfs.github.com/spec/": "a pointer of Git LFS, not the file; git lfs pull brings it",
    b"/annex/objects/": "a pointer of git-annex, not the file; git annex get brings it",
    b"<!doctype html": "a web page, not the file; download it again (the hub's files have /resolve/ in their address)",
    b"<html": "a web page, not the file; download it again (the hub's files have /resolve/ in their address)",
}
VERSION = re.compile(r"(?:checkpoint-)?(\d+)|[0-9a-f]{40}")  # a run's checkpoint, or a commit in the hub cache


def missing(path: epath.PathLike) -> str:
    """The message for a path that does not exist: what its nearest existing parent contains, and a similar name."""
    name = os.fspath(path)
    written_out = os.path.expanduser(os.path.expandvars(name))
    if written_out != name:
        return f"{name}: there is no such file or folder; ~ and $ are taken as they stand, write {written_out}"
    if is_remote(name):
        return f"{name}: there is no such file or folder"
    parent = next((parent for parent in Path(name).parents if parent.is_dir()), None)
    if parent is None:  # of "." and "/"
        return f"{name}: there is no such file or folder"
    wanted = Path(name).relative_to(parent).parts[0]
    names = sorted(file.name for file in parent.iterdir() if not file.name.startswith("."))
    here = "this folder" if parent == Path() else str(parent)
    return f"{name}: there is no such file or folder; {here} {holds(names)}{did_you_mean(wanted, names)}"


def read_text(path: epath.PathLike) -> str:
    """Read the text of a file named by a user.

    Raises:
        UserError: if the file does not exist, can't be read or is not text.
    """
    file = open_path(path)
    require(file.exists(), missing(path))
    require(not file.is_dir(), f"{path}: a folder, where a file is read")
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
        raise UserError(f"{path}: not text in UTF-8 (byte {error.start} is {content[error.start]:#04x})") from error


def holds(names: list[str], most: int = 8) -> str:
    """Say which files a folder contains, listing at most `most` names."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"holds {', '.join(names[:most])}{more}" if names else "is empty"


def instead(folder: Path, is_it: Callable[[Path], bool]) -> str:
    """ "; give FOLDER" if what is wanted lies at most four levels below `folder`, else an empty string.

    Among versions of one thing, such as checkpoints of a run or cached revisions of a repository, it suggests the
    newest.
    """
    level, found = [folder], list[Path]()
    for _ in range(4):
        level = [below for above in level for below in _folders(above)][:1000]
        found += filter(is_it, level)
        level = [below for below in level if below not in found]
    if not found:
        return ""
    found.sort(key=_age)
    newest = found[-1]
    are_versions = all(one.parent == newest.parent and VERSION.fullmatch(one.name) for one in found)
    names = ", ".join(map(str, found[:5]))
    return f"; give {newest}" if len(found) == 1 or are_versions else f"; give one of those in it, such as {names}"


def _age(folder: Path) -> tuple[bool, int, float]:
    """Sort key that is larger for newer versions."""
    main, step = folder.parent.parent / "refs/main", VERSION.fullmatch(folder.name)
    is_main = main.is_file() and main.read_text().strip() == folder.name
    return is_main, int(step[1] or 0) if step else 0, folder.stat().st_mtime


def _folders(folder: Path) -> list[Path]:
    try:
        return [Path(found.path) for found in os.scandir(folder) if found.is_dir()]
    except OSError:  # no permission to read it
        return []


def stand_in(head: bytes) -> str | None:
    """Describe a placeholder (an LFS or git-annex pointer, a web page) and the remedy; None if it is not one.

    Args:
        head: the first 64 bytes or more of the file.
    """
    return next((what for begin, what in STAND_INS.items() if head.lstrip().lower().startswith(begin)), None)


def refuse_stand_in(path: epath.PathLike) -> None:
    """Raise `UserError` if a file is only a placeholder for another."""
    with epath.Path(path).open("rb") as file:
        what = stand_in(file.read(64))
    require(what is None, f"{path}: {what}")
