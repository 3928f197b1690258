"""The one exception that a user is meant to see."""


class UserError(Exception):
    """A mistake that the user can mend; the message names the field or file and the remedy.

    The command prints it as one line without a traceback and exits with 2. Anything else that escapes is a bug of ours
    and keeps its traceback.
    """
