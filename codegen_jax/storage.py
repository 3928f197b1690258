"""Paths that may be local, gs:// or s3://."""

import atexit
import errno
import fcntl
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from string import Template

import fsspec
from etils import epath

from codegen_jax.errors import UserError, require

log = logging.getLogger(__name__)

KNOWN = "a local path, gs://, s3://, or OWNER/NAME on the Hugging Face hub"
UNFINISHED = ".tmp"  # suffix of files that are being written
LIBRARIES = {"gs": "gcsfs", "s3": "s3fs"}  # the extras [gcs] and [s3]


def is_remote(path: epath.PathLike) -> bool:
    return "://" in str(path)


def expand(path: str) -> str:
    """Expand a path like a shell: ~ and ~USER to home folders, $NAME and ${NAME} to variables.

    A path that exists as written is returned unchanged.

    Raises:
        UserError: if a variable is unset or empty, $ is used in any other way (except $$), or a home does not exist.
    """
    if not is_remote(path) and epath.Path(path).exists():
        return path
    try:
        expanded = Template(path).substitute({name: value for name, value in os.environ.items() if value})
    except KeyError as error:
        raise UserError(
            f"{path}: environment variable {error.args[0]} is not set; set it, or write $$ for a literal $"
        ) from error
    except ValueError as error:
        raise UserError(
            f"{path}: $ must be followed by the name of an environment variable; write $$ for a literal $"
        ) from error
    home = os.path.expanduser(expanded)
    require(home[:1] != "~", f"{path}: no such home folder; write ./~ for a name that begins with ~")
    return home


def open_path(path: epath.PathLike) -> epath.Path:
    """The absolute path.

    Raises:
        UserError: if the kind of storage is unknown, its library is not installed, or it does not respond.
    """
    if not is_remote(path):
        return epath.Path(path).absolute()
    scheme = str(path).partition("://")[0]
    library = LIBRARIES.get(scheme)
    require(library is not None, f"{path}: unknown kind of storage; use {KNOWN}")
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        raise UserError(f"{path}: {scheme}:// requires {library}; pip install {library}") from error
    with _access_errors_reported(path):
        epath.Path(path).exists()
    return epath.Path(path)


@contextmanager
def _access_errors_reported(path: epath.PathLike) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # DNS, credentials, permissions: OSError and the exceptions of gcsfs, s3fs and boto
        raise UserError(f"{path}: cannot be accessed ({' '.join(str(error).split())[:200]})") from error


def local_copy(folder: epath.PathLike) -> Path:
    """Copy a remote folder to a temporary local one that is deleted at exit; a local folder is returned as is.

    Raises:
        UserError: if the folder can't be read.
    """
    if not is_remote(folder):
        return Path(folder)
    open_path(folder)
    copy = tempfile.mkdtemp(prefix="codegen_jax-")
    atexit.register(shutil.rmtree, copy, ignore_errors=True)
    files, path = fsspec.url_to_fs(str(folder))
    with _access_errors_reported(folder):
        files.get(f"{path.rstrip('/')}/", f"{copy}/", recursive=True)
    return Path(copy)


def file_size(path: epath.Path) -> int:
    """The size of a file in bytes.

    `path.stat()` of a local file also looks up its owner's name and fails if there is none, as is usual in containers.
    """
    return path.stat().length if is_remote(path) else os.stat(path).st_size


def write_whole(path: epath.Path, text: str) -> None:
    """Write a small file atomically: a kill or a concurrent writer leaves either the old or a complete new file."""
    if is_remote(path):  # objects become visible only when complete
        path.write_text(text)
        return
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}{UNFINISHED}")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def require_local(name: str, path: epath.PathLike) -> None:
    require(not is_remote(path), f"{name}: {path}: must be a local path; copy the result to remote storage afterwards")


def locked(path: epath.PathLike) -> FileIO | None:
    """Open a local file for reading and writing with an exclusive lock; None if another process holds the lock.

    The lock is held until the file is closed or this process ends in any way. It is a POSIX lock, which NFS enforces
    across hosts. If the file system has no locks, the file is opened anyway, with a warning.
    """
    file = open(path, "a+b", buffering=0)  # noqa: SIM115 - it stays open
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            file.close()
            return None
        log.warning(
            f"{path}: this file system does not support locks ({error}); make sure that only one process writes to its "
            "folder"
        )
    return file
