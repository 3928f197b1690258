"""User-facing errors: the exceptions meant for users, the checks that raise them, and how they are reported.

Messages are records of the logger "codegen_jax" and its children. The command prints them; a program that imports the
package can handle them as it likes.
"""

import logging
import signal
from collections.abc import Sequence

log = logging.getLogger("codegen_jax")

RUN_LOG = "codegen_jax.run"  # the logger for a training run's step-by-step output
PREEMPTED = 75  # exit code of a run that saved and stopped at a cluster's request; EX_TEMPFAIL of sysexits.h: try again
UNREAD = 141  # exit code when the reader of the output has exited (`| head`), as for a program killed by SIGPIPE
INTERRUPTED = 130  # exit code after Ctrl-C, by convention; unlike 75, it does not make supervisors restart the run


class UserError(Exception):
    """A mistake that the user can fix; the message names the field or file and the remedy.

    If a single field is at fault, the message begins with its name and a colon ("top_p: must be ..."). The command
    prints it as one line without a traceback and exits with code 2. `report` lists the exit codes of other exceptions.

    >>> try:
    ...     codegen_jax.Options(top_p=2)
    ... except codegen_jax.UserError as error:
    ...     print(error)
    top_p: must be above 0 and at most 1, got 2
    """


class Preempted(Exception):
    """The run received a signal to stop and has saved a checkpoint; the same command resumes it.

    Attributes:
        code: the command's exit code: 75 after SIGTERM, 130 after Ctrl-C.
    """

    def __init__(self, received: signal.Signals, step: int):
        interrupted = received == signal.SIGINT
        name = "interrupted" if interrupted else received.name
        super().__init__(f"{name}: saved after step {step}; the same command resumes from there")
        self.code = INTERRUPTED if interrupted else PREEMPTED


def report(error: BaseException, where: str = "") -> int:
    """Log an error for the user and return the command's exit code.

    The code is 2 for a `UserError` or an `OSError` (such as a full disk or a read-only folder, which the text names),
    75 or 130 for `Preempted`, 130 after Ctrl-C, and 1 for anything else, which is a bug and keeps its traceback.
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
    """List items such as problems for a message: the first few, and the number of the rest."""
    return "; ".join(items[:most]) + (f"; and {len(items) - most} more" if len(items) > most else "")


def require_seed(name: str, seed: int) -> None:
    """Require a seed that NumPy, grain and JAX all accept: an unsigned 32-bit integer."""
    require(0 <= seed < 2**32, f"{name}: must be in [0, 2**32), got {seed}")
