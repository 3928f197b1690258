"""A run's records: in its output folder, or in a local folder that is copied to a remote output."""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from etils import epath

from codegen_jax.storage import is_remote, open_path

log = logging.getLogger(__name__)

METRICS, SAMPLES = "metrics.jsonl", "samples.jsonl"  # a resumed run appends to these
SUMMARY = "summary.md"


class Records:
    """What a run writes besides checkpoints: metrics, samples, TensorBoard events, profile, plot and summary.

    Attributes:
        folder: local folder that the records are written to.
    """

    def __init__(self, output: str):
        self.output = open_path(output)
        self.remote = is_remote(output)
        self.folder = Path(tempfile.mkdtemp(prefix="codegen_jax-")) if self.remote else Path(output)
        self.copied: dict[Path, int] = {}
        for name in (METRICS, SAMPLES) if self.remote else ():
            if (self.output / name).exists():
                (self.folder / name).write_bytes((self.output / name).read_bytes())

    def upload(self) -> None:
        """Copy files that changed since the last upload to a remote output."""
        if not self.remote:
            return
        with forgiven(self.output):
            for path in sorted(path for path in self.folder.rglob("*") if path.is_file()):
                changed = path.stat().st_mtime_ns
                if self.copied.get(path) != changed:
                    copy = self.output / path.relative_to(self.folder).as_posix()
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    copy.write_bytes(path.read_bytes())
                    self.copied[path] = changed


@contextmanager
def forgiven(place: epath.PathLike) -> Iterator[None]:
    """Log a warning instead of failing if a record can't be written."""
    try:
        yield
    except Exception as error:  # OSError, and the exceptions of gcsfs and s3fs
        log.warning(f"{place}: a record could not be written ({error}); training continues")
