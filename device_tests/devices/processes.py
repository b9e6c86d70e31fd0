"""Child processes that always end: a timeout, and with it the whole group that the command started."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from adakv_model.errors import UserError
from device_tests.devices.device import Completed, RunTimeout


def run_command(
    command: Sequence[str | Path],
    timeout: float,
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
) -> Completed:
    """Run to the end, output captured as UTF-8. env: added to this process's.

    Raises UserError where the program cannot be started, RunTimeout (a UserError) after `timeout` seconds.
    """
    words = [str(word) for word in command]
    try:
        child = subprocess.Popen(
            words,
            cwd=cwd,
            env={**os.environ, **env} if env else None,
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise UserError(f"cannot start {words[0]} ({error.strerror})") from error
    try:
        out, err = child.communicate(stdin, timeout)
    except subprocess.TimeoutExpired:
        raise RunTimeout(f"{Path(words[0]).name} ran past {timeout:g} s and was ended") from None
    finally:
        if child.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.communicate()
    status = child.returncode if child.returncode >= 0 else 128 - child.returncode
    return Completed(status, out, err)


def last_line(done: Completed) -> str:
    """What a failed command says of itself: the last line it wrote, else its status."""
    lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    return lines[-1].strip() if lines else f"status {done.status}"
