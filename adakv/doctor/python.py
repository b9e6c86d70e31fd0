"""The interpreter, and the pinned packages."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from adakv.commands import CHECKOUT
from adakv.doctor.finding import Finding, Machine, fatal, info, ok, shown, silent

WANTED = (3, 11)
LOCK = CHECKOUT / "requirements.lock"


def interpreter(machine: Machine) -> Iterator[Finding]:
    found = f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}, {shown(sys.executable)}"
    if sys.version_info[:2] != WANTED:
        yield fatal("python", found, "make the environment with Python 3.11: make venv PYTHON=/path/to/python3.11")
    else:
        yield ok("python", found)
    if sys.prefix == sys.base_prefix:
        yield silent(
            "python", "no virtual environment: pins can change under other programs' feet", "make venv, then .venv/bin"
        )
    if machine.environment.get("PYTHONPATH"):
        yield silent(
            "python",
            f"PYTHONPATH is set ({machine.environment['PYTHONPATH']}): its modules come before the pinned ones",
            "unset PYTHONPATH",
        )


def pins(machine: Machine) -> Iterator[Finding]:
    """Installed versions against requirements.lock, or against the package's own pins where there is no checkout."""
    needed = dict(_pins(requires("adakv") or []))
    locked = read_lock(LOCK) if LOCK.is_file() else needed
    yield from compare_pins(locked, set(needed), _installed(locked))


def compare_pins(locked: Mapping[str, str], needed: set[str], installed: Mapping[str, str]) -> Iterator[Finding]:
    """locked, installed: name -> version; needed: names without which nothing runs."""
    differ = {name: installed[name] for name in locked if name in installed and installed[name] != locked[name]}
    missing = [name for name in locked if name not in installed]
    lost = [name for name in missing if name in needed]
    if lost:
        yield fatal("pins", f"not installed: {', '.join(lost)}", "make venv")
    if differ:
        shown = ", ".join(f"{name} {found} instead of {locked[name]}" for name, found in differ.items())
        yield silent("pins", shown, "pip install -r requirements.lock in the environment (or make venv)")
    if others := [name for name in missing if name not in needed]:
        yield info("pins", f"of development and evaluation, not installed: {', '.join(others)}", "make venv")
    if not missing and not differ:
        yield ok("pins", f"{len(locked)} packages as pinned")


def read_lock(path: Path) -> dict[str, str]:
    """Normalised name -> version of every `name==version` line."""
    return dict(_pins(path.read_text(encoding="utf-8").splitlines()))


def _pins(lines: list[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        if "extra ==" not in line and (match := re.match(r"\s*([\w.-]+)==([\w.+!-]+)", line)):
            yield re.sub(r"[-_.]+", "-", match[1]).lower(), match[2]


def _installed(names: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = version(name).partition("+")[0]
        except PackageNotFoundError:
            continue
    return found
