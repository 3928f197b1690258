"""A run's output folder: file names, and how to find complete checkpoints. Imports nothing heavy."""

from etils import epath

from codegen_jax.storage import open_path

RUN_FILE, CHECKPOINTS, DAMAGED = "run.json", "checkpoints", "damaged"
COMPLETE = "_CHECKPOINT_METADATA"  # marks a complete checkpoint; Orbax writes it last
UNFINISHED = "*.orbax-checkpoint-tmp*"  # Orbax's name for a checkpoint that is being written


def complete_checkpoints(output: epath.PathLike) -> list[epath.Path]:
    """The folders of a run's complete checkpoints, oldest first."""
    steps = [p for p in open_path(output).glob(f"{CHECKPOINTS}/*") if p.name.isdigit() and is_complete(p)]
    return sorted(steps, key=lambda p: int(p.name))


def unfinished_checkpoints(output: epath.PathLike) -> list[epath.Path]:
    """The folders of interrupted and ongoing saves."""
    return list(open_path(output).glob(f"{CHECKPOINTS}/{UNFINISHED}"))


def find_checkpoint(path: epath.PathLike) -> epath.Path | None:
    """The path itself if it is a complete checkpoint, else the newest one in a run's output folder, else None."""
    folder = open_path(path)
    return folder if is_complete(folder) else next(reversed(complete_checkpoints(folder)), None)


def is_complete(checkpoint: epath.Path) -> bool:
    return (checkpoint / COMPLETE).exists()
