"""What a user is told: the exceptions that are meant for users, the checks that raise them, and their report.

Messages are records of the logger "codegen_jax" and those below it. The command prints them; a program that imports the
package handles them as it likes.
"""

import logging
import signal
from collections.abc import Sequence

log = logging.getLogger("codegen_jax")

RUN_LOG = "codegen_jax.run"  # the logger of what a training run says of itself, step by step
PREEMPTED = 75  # the exit code of a run that saved and stopped when a cluster told it to; sysexits.h: try again
UNREAD = 141  # where what reads the output has ended (`| head`), as of a program that SIGPIPE kills
INTERRUPTED = 130  # after Ctrl-C, as of every program: what starts a run again after 75 does not after this


class UserError(Exception):
    """A mistake that the user can mend; the message names the field or file and the remedy.

    Where one field is at fault the message begins with its name and a colon ("top_p: 2 must be ..."). The command
    prints it as one line without a traceback and exits with 2. Anything else that escapes is a bug of ours and keeps
    its traceback.
    """


class Preempted(Exception):
    """The run was told to stop and has saved; the same command goes on with it.

    Attributes:
        code: the command's exit code, 75 after SIGTERM and 130 after Ctrl-C.
    """

    def __init__(self, told_by: signal.Signals, step: int):
        interrupted = told_by == signal.SIGINT
        name = "interrupted" if interrupted else told_by.name
        super().__init__(f"{name}: saved after step {step}; the same command goes on from there")
        self.code = INTERRUPTED if interrupted else PREEMPTED


def report(error: BaseException, where: str = "") -> int:
    """Log an error for the user and return the command's exit code; bugs of ours keep their traceback.

    2 for a `UserError` or `OSError` (a disk that is full, a folder that may not be written: the text names it), that of
    `Preempted`, 130 after Ctrl-C, 1 for all else.
    """
    text, code, bug = str(error), 2, None
    if isinstance(error, Preempted):
        code = error.code
    elif isinstance(error, KeyboardInterrupt):
        text, code = "interrupted", INTERRUPTED
    elif not isinstance(error, UserError | OSError):
        text, code, bug = f"{type(error).__name__}: {error}", 1, error
    kind = "stopped" if isinstance(error, Preempted) else "error"
    message = f"{where}{': ' if where else ''}{' '.join(text.split())}"
    log.error(message, exc_info=bug, extra={"kind": kind})
    return code


def require(condition: bool, message: str) -> None:
    """Raise `UserError(message)` unless the condition holds."""
    if not condition:
        raise UserError(message)


def listed(items: Sequence[str], most: int = 5) -> str:
    """Items for a message, such as problems: the first few, and how many more there are."""
    return "; ".join(items[:most]) + (f"; and {len(items) - most} more" if len(items) > most else "")


def require_seed(name: str, seed: int) -> None:
    """Seeds are what NumPy, grain and JAX all take: unsigned, 32 bits."""
    require(0 <= seed < 2**32, f"{name}: {seed} must be in [0, 2**32)")
