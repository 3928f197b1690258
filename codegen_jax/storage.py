"""Paths that may be local, gs:// or s3://."""

import atexit
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
from etils import epath

from codegen_jax.errors import UserError, require

KNOWN = "a local path, gs:// or s3://, or OWNER/NAME for a model of huggingface.co"
LIBRARIES = {"gs": "gcsfs", "s3": "s3fs"}  # the extras [gcs] and [s3]


def is_remote(path: epath.PathLike) -> bool:
    return "://" in str(path)


def open_path(path: epath.PathLike) -> epath.Path:
    """The path, absolute.

    Raises:
        UserError: if it is of a storage that we do not know, whose library is not installed, or that does not answer.
    """
    if not is_remote(path):
        return epath.Path(path).absolute()
    scheme = str(path).partition("://")[0]
    library = LIBRARIES.get(scheme)
    require(library is not None, f"{path}: a kind of storage that is not known; use {KNOWN}")
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        raise UserError(f"{path}: {scheme}:// needs {library}; pip install {library}") from error
    with _named(path):
        epath.Path(path).exists()
    return epath.Path(path)


@contextmanager
def _named(path: epath.PathLike) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of DNS, credentials, permissions: OSError, and what gcsfs, s3fs and boto raise
        raise UserError(f"{path}: can't be reached ({' '.join(str(error).split())[:200]})") from error


def local_copy(folder: epath.PathLike) -> Path:
    """A remote folder as a temporary local one, which lasts as long as the process; a local folder itself.

    Raises:
        UserError: if it can't be read.
    """
    if not is_remote(folder):
        return Path(folder)
    open_path(folder)
    copy = tempfile.mkdtemp(prefix="codegen_jax-")
    atexit.register(shutil.rmtree, copy, ignore_errors=True)
    files, path = fsspec.url_to_fs(str(folder))
    with _named(folder):
        files.get(f"{path.rstrip('/')}/", f"{copy}/", recursive=True)
    return Path(copy)


def write_whole(path: epath.Path, text: str) -> None:
    """Write a small file at once: a kill leaves the old one or the new one."""
    if is_remote(path):  # objects appear when they are whole
        path.write_text(text)
        return
    written = path.with_suffix(".tmp")
    written.write_text(text)
    written.replace(path)


def require_local(name: str, path: epath.PathLike) -> None:
    require(not is_remote(path), f"{name}: {path}: is written to local folders only; copy it there afterwards")
