"""Where output goes and input comes from: a full disk, a closed stream, a pipe that ends, a name that is no UTF-8."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from adakv_model.command_line import Exit
from adakv_model.errors import what_to_do
from device_tests.exporting import ROOT

ADAKV = f'"{sys.executable}" -m adakv'
PRINTING = ["--help", "--version", "export --list-models", "export --list-presets --json", "doctor --only python"]


def shell(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    changed = os.environ | environment
    return subprocess.run(["bash", "-c", script], cwd=ROOT, env=changed, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("words", PRINTING)
def test_output_that_cannot_be_written_is_one_line(words: str) -> None:
    done = shell(f"{ADAKV} {words} > /dev/full")
    assert done.returncode == Exit.USER
    assert done.stderr == "error: cannot write (No space left on device): free some space, or name another place\n"


@pytest.mark.parametrize("words", PRINTING)
def test_the_end_of_a_pipe_is_silent(words: str) -> None:
    done = shell(f"{ADAKV} {words} | true; echo ${{PIPESTATUS[0]}}")
    assert done.stdout == f"{Exit.PIPE:d}\n"
    assert done.stderr == ""


@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
def test_closed_streams_lead_nowhere(closed: str, artifact: Path) -> None:
    """A file that is opened meanwhile must not get the number of standard output, and with it the answer."""
    script = f"{ADAKV} generate --artifact '{artifact}' --prompt 1 --max-new-tokens 2 --no-chat"
    done = shell(f"{script} {closed}")
    assert done.returncode == Exit.DONE, done.stderr
    assert ("tokens/s" in done.stderr) == ("2" not in closed)


def test_a_closed_input_is_an_empty_prompt(artifact: Path) -> None:
    done = shell(f"{ADAKV} generate --artifact '{artifact}' --prompt - <&-")
    assert done.returncode == Exit.USER
    assert done.stderr == "error: standard input is empty: write the prompt to it\n"


@pytest.mark.parametrize("word", ["--install-completion", "--show-completion"])
def test_a_shell_without_completion_is_one_line(word: str, tmp_path: Path) -> None:
    script = f"{ADAKV} {word}; exit $?"
    words = ["dash", "-c", script]
    done = subprocess.run(words, cwd=ROOT, env=os.environ | {"HOME": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == Exit.USER
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line == (
        "error: completion is for bash, zsh, fish, powershell, pwsh, and the shell here is dash: call this in one of"
        " them"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("locale", ["C.UTF-8", "C"])
def test_an_artifact_of_any_name_runs(locale: str, artifact: Path, tmp_path: Path) -> None:
    places = [os.fsencode(tmp_path) + b"/" + name for name in (b"bad\xff\xfe", "ümlaut".encode(), b"new\nline", b"[a]")]
    for place in places:
        os.symlink(artifact, place)
    program = (
        "import sys; from pathlib import Path; from adakv_model.runtime.artifact import Artifact\n"
        "for name in sys.argv[1:]: Artifact(Path(name)).load().step([1])"
    )
    words: list[str | bytes] = [sys.executable, "-c", program, *places]
    environment = os.environ | {"LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    words = [sys.executable, "-m", "adakv", "describe", places[0], "--json"]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, check=False)
    assert set(json.loads(done.stdout)["files"].values()) == {"intact"}


def test_an_interrupt_after_the_end_is_silent() -> None:
    program = (
        "import atexit, os, signal; atexit.register(os.kill, os.getpid(), signal.SIGINT)\n"
        "from adakv.front import app; app(['--version'])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_errors_of_the_machine_say_what_to_do() -> None:
    for error in (PermissionError(13, "Permission denied", "a"), OSError(30, "Read-only file system", "a")):
        assert what_to_do(error) == f"cannot use a ({error.strerror}): check the path, its permissions and its disk"
    assert what_to_do(OSError(22, "Invalid argument")) is None
    assert what_to_do(ConnectionResetError(104, "Connection reset by peer")) is None
