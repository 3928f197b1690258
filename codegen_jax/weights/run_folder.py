"""A run's output folder: the names in it, and which of its checkpoints are whole. Imports nothing heavy."""

from etils import epath

from codegen_jax.storage import open_path

RUN_FILE, CHECKPOINTS, DAMAGED = "run.json", "checkpoints", "damaged"
COMPLETE = "_CHECKPOINT_METADATA"  # of a checkpoint; Orbax writes it last
UNFINISHED = "*.orbax-checkpoint-tmp*"  # Orbax's name for a checkpoint that is being written


def whole_checkpoints(output: epath.PathLike) -> list[epath.Path]:
    """Folders of a run's checkpoints that were written to their end, oldest first."""
    steps = [p for p in open_path(output).glob(f"{CHECKPOINTS}/*") if p.name.isdigit() and is_whole(p)]
    return sorted(steps, key=lambda p: int(p.name))


def unfinished_checkpoints(output: epath.PathLike) -> list[epath.Path]:
    """Folders of saves that were begun and not ended."""
    return list(open_path(output).glob(f"{CHECKPOINTS}/{UNFINISHED}"))


def find_checkpoint(path: epath.PathLike) -> epath.Path | None:
    """The folder of one checkpoint: the path itself, or the newest whole one of a run's output folder."""
    folder = open_path(path)
    return folder if is_whole(folder) else next(reversed(whole_checkpoints(folder)), None)


def is_whole(checkpoint: epath.Path) -> bool:
    return (checkpoint / COMPLETE).exists()
