"""The one exception type that reaches the user, and whether the rest is wanted too."""

import os

DEBUG = "ADAKV_DEBUG"  # environment variable that --debug sets, so that child processes have it too


def debugging() -> bool:
    """Whether tracebacks and logs are wanted."""
    return os.environ.get(DEBUG, "") not in ("", "0")


def first_line(error: Exception) -> str:
    """Of an error's text, or its type where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class UserError(Exception):
    """A problem the user can fix: one line that names it and says what to do.

    The command line prints the message and exits with status 2. Every other exception is a bug and keeps its
    traceback.
    """
