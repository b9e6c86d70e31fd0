"""What a check finds, and the machine it looks at, which tests replace by a broken one."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path


class Severity(StrEnum):
    """How bad a finding is, worst first. Exit code 3 where one is fatal."""

    FATAL = "fatal"  # an export or a run on this machine fails
    SILENT = "silent"  # it goes on, and something may differ without a word
    SLOW = "slow"  # it works, slowly
    INFO = "info"  # something optional is missing, or worth knowing
    OK = "ok"


@dataclass(frozen=True)
class Finding:
    """One line of the report. remedy: what to do, for all but ok."""

    severity: Severity
    subject: str
    text: str
    remedy: str = ""

    def to_json(self) -> dict[str, str]:
        return {
            "severity": str(self.severity),
            "subject": self.subject,
            "finding": self.text,
            "remedy": self.remedy,
        }


def ok(subject: str, text: str) -> Finding:
    return Finding(Severity.OK, subject, text)


def fatal(subject: str, text: str, remedy: str) -> Finding:
    return Finding(Severity.FATAL, subject, text, remedy)


def silent(subject: str, text: str, remedy: str) -> Finding:
    return Finding(Severity.SILENT, subject, text, remedy)


def slow(subject: str, text: str, remedy: str) -> Finding:
    return Finding(Severity.SLOW, subject, text, remedy)


def info(subject: str, text: str, remedy: str = "") -> Finding:
    return Finding(Severity.INFO, subject, text, remedy)


def shown(path: str) -> str:
    """As it is named from here, where it lies below the current folder."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path


@dataclass(frozen=True)
class Machine:
    """Environment variables, programs and a way to run them."""

    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))

    def which(self, program: str) -> str | None:
        return shutil.which(program, path=self.environment.get("PATH", os.defpath))

    def run(self, words: Sequence[str], timeout: float = 20.0) -> tuple[int, str]:
        """Exit status and all output; 127 where it cannot be started, 124 where it takes too long."""
        try:
            done = subprocess.run(
                words,
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return 124, f"no answer in {timeout:g} s"
        except OSError as error:
            return 127, error.strerror or str(error)
        return done.returncode, done.stdout.decode(errors="replace").strip()


@dataclass(frozen=True)
class Check:
    """A kind of check. blind: what it cannot see."""

    name: str
    look: Callable[[Machine], Iterator[Finding]]
    blind: str
