"""Write scalars and texts as TensorBoard's event files."""

import math
import time
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.summary import scalar, text


class TensorBoardLog:
    """An event file in FOLDER that hides the events of steps after `first_step` in earlier files."""

    def __init__(self, folder: Path, first_step: int):
        folder.mkdir(exist_ok=True)
        # not SummaryWriter: a full disk kills its thread, and then its queue blocks
        self.file = EventsWriter(str(folder / "events"))
        self._write(first_step + 1, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            if math.isfinite(value):  # otherwise tensorboardX would warn at each step
                self._write(step, summary=scalar(name, value))
        self.file.flush()

    def text(self, step: int, name: str, markdown: str) -> None:
        self._write(step, summary=text(name, markdown))

    def close(self) -> None:
        self.file.close()

    def _write(self, step: int, **content: Any) -> None:
        self.file.write_event(Event(wall_time=time.time(), step=step, **content))
