"""The one exception type that reaches the user, and whether the rest is wanted too."""

import errno
import os

DEBUG = "ADAKV_DEBUG"  # environment variable that --debug sets, so that child processes have it too


def debugging() -> bool:
    """Whether tracebacks and logs are wanted."""
    return os.environ.get(DEBUG, "") not in ("", "0")


def first_line(error: Exception) -> str:
    """Of an error's text, or its type where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PLACE = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP,
    errno.ENAMETOOLONG, errno.EMFILE, errno.ENFILE, errno.EIO, errno.ENXIO, errno.ESTALE,
)  # fmt: skip


def what_to_do(error: OSError) -> str | None:
    """What of the machine an error is about, in one line with the remedy; None where the program is to blame."""
    where = f"{error.filename} " if error.filename else ""
    if error.errno in _FULL:
        return f"cannot write {where}({error.strerror}): free some space, or name another place"
    if error.errno in _PLACE and error.filename:
        return f"cannot use {where}({error.strerror}): check the path, its permissions and its disk"
    return None


class UserError(Exception):
    """A problem the user can fix: one line that names it and says what to do.

    The command line prints the message and exits with status 2. Every other exception is a bug and keeps its
    traceback.
    """
