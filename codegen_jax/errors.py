"""What a user is told: the one exception that is meant for users, the checks that raise it, and warnings."""

import sys
from functools import cache


class UserError(Exception):
    """A mistake that the user can mend; the message names the field or file and the remedy.

    The command prints it as one line without a traceback and exits with 2. Anything else that escapes is a bug of ours
    and keeps its traceback.
    """


def require(condition: bool, message: str) -> None:
    """Raise `UserError(message)` unless the condition holds."""
    if not condition:
        raise UserError(message)


def require_seed(name: str, seed: int) -> None:
    """Seeds are what NumPy, grain and JAX all take: unsigned, 32 bits."""
    require(0 <= seed < 2**32, f"{name}: {seed} must be in [0, 2**32)")


@cache
def warn(message: str) -> None:
    """Print what a user should know but need not mend, once."""
    print(f"codegen-jax: warning: {message}", file=sys.stderr)
