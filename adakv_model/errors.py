"""The one exception type that reaches the user."""


class UserError(Exception):
    """A problem the user can fix: one line that names it and says what to do.

    The command line prints the message and exits with status 2. Every other exception is a bug and keeps its
    traceback.
    """
