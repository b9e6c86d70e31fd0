"""Whether this Python is the one with the pinned packages. Imports nothing but the standard library."""

from __future__ import annotations

import sys
from importlib.util import find_spec

NEEDED = ("typer", "rich", "torch")  # what every command imports, sooner or later


def require_packages() -> None:
    """End the process with one line where a command was started with a Python that lacks its packages."""
    for name in NEEDED:
        if find_spec(name) is None:
            message = f"error: {sys.executable} has no module {name!r}: run `make venv`, then `. .venv/bin/activate`"
            print(message, file=sys.stderr)
            sys.exit(2)
