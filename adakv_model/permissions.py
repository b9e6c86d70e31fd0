"""Permissions of new files, for those that libraries create with others."""

from __future__ import annotations

import os


def permissions(*, executable: bool = False) -> int:
    """The mode that the user's umask leaves to a new file, or to a program or folder."""
    umask = os.umask(0)
    os.umask(umask)
    return (0o777 if executable else 0o666) & ~umask
