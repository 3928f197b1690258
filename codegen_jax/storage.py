"""Paths that may be local, gs:// or s3://."""

import atexit
import shutil
import tempfile
from pathlib import Path

import fsspec
from etils import epath

from codegen_jax.errors import UserError, require

LIBRARIES = {"gs": "gcsfs", "s3": "s3fs"}  # the extras [gcs] and [s3]


def is_remote(path: epath.PathLike) -> bool:
    return "://" in str(path)


def open_path(path: epath.PathLike) -> epath.Path:
    """The path, absolute.

    Raises:
        UserError: if it is of a storage that we do not know, or whose library is not installed.
    """
    if not is_remote(path):
        return epath.Path(path).absolute()
    scheme = str(path).partition("://")[0]
    library = LIBRARIES.get(scheme)
    require(library is not None, f"{path}: a kind of storage that is not known; use a local path, gs:// or s3://")
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        raise UserError(f"{path}: {scheme}:// needs {library}; pip install {library}") from error
    return epath.Path(path)


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
    try:
        files.get(f"{path.rstrip('/')}/", f"{copy}/", recursive=True)
    except Exception as error:  # OSError, and what gcsfs and s3fs raise
        raise UserError(f"{folder}: can't be read ({' '.join(str(error).split())[:200]})") from error
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
