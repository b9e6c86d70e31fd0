"""Every number a user can pass to any command: what is none, or too large, ends with one message and exit code 2."""

from __future__ import annotations

import importlib
import math
import re
import sys
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from adakv.commands import COMMANDS, SCRIPTS
from adakv.test_house import ROOT, listed
from adakv_model.command_line import Exit
from adakv_model.errors import UserError
from adakv_model.numbers import LARGEST_COUNT, LARGEST_REAL, check_number, number_list
from export.options import ExportOptions
from export.presets import gather

BELOW_ZERO = {"seed", "cool_to"}  # any seed; degrees
CACHE_NUMBERS = [f.name for f in fields(ExportOptions) if {"int", "float"} & set(str(f.type).split())]
BAD = ("nan", "inf", "-inf", "-1", str(10**30), "1e30", "9" * 5000)


@cache
def apps() -> dict[str, str]:
    """Module -> file, of every module with a typer app of its own; adakv/front.py holds the others."""
    names = [name for name in listed() if name.endswith(".py") and name != "adakv/front.py"]
    return {
        name.removesuffix(".py").removeprefix("scripts/").replace("/", "."): name
        for name in names
        if re.search(r"^app = typer\.Typer\(", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
    }


def load(module: str) -> Any:
    """Its typer app."""
    if str(SCRIPTS) not in sys.path:
        sys.path.insert(0, str(SCRIPTS))
    return importlib.import_module(module).app


def test_every_command_is_walked() -> None:
    assert {e.module.removeprefix("scripts.") for e in COMMANDS} <= apps().keys()
    assert len(apps()) > 15


def test_commands_are_apps() -> None:
    """`typer.run` would leave a command without the wrapper that ends errors and checks numbers."""
    bare = [
        n for n in listed() if n.endswith(".py") and "typer.run(" + "main" in (ROOT / n).read_text(encoding="utf-8")
    ]
    assert bare == ["device_tests/coreml/swift_fixtures.py", "scripts/make_tiny_artifact.py"], "they take no numbers"


@pytest.mark.parametrize("module", apps())
def test_numbers_that_no_option_takes(module: str) -> None:
    app = load(module)
    options: list[Any] = get_command(app).params
    needed = [option for option in options if option.required]
    numeric = [option for option in options if {int, float} & {option.type_descriptor.annotation}]
    taken = len(re.findall(r"Annotated\[\s*(?:int|float)\b", (ROOT / apps()[module]).read_text(encoding="utf-8")))
    assert len(numeric) == (len(CACHE_NUMBERS) if module == "export.cli" else taken)
    for option in numeric:
        words = [word for p in needed if p is not option for word in (p.opts[0], "x")]
        for bad in BAD:
            if bad == "-1" and option.name in BELOW_ZERO:
                continue
            done = CliRunner().invoke(app, [*words, f"{option.opts[0]}={bad}"])
            where = f"{option.opts[0]} {bad[:40]}: {done.output}{done.exception!r}"
            assert done.exit_code == Exit.USER, where
            assert len(re.findall(r"\b[eE]rror\b", done.stderr)) == 1, where
            assert option.opts[0] in done.stderr, where
            assert "Traceback" not in done.stderr, where


def test_numbers_of_a_file_are_checked_too(tmp_path: Path) -> None:
    for line in ("kv-bits = nan", "kv-bits = 1e30", "window = 9999999999", "context = -1"):
        (tmp_path / "options.toml").write_text(line, encoding="utf-8")
        with pytest.raises(UserError, match=f"^--{line.split()[0]}"):
            gather(None, tmp_path / "options.toml", {}).check()


@pytest.mark.parametrize("option", ["--seed", "--tokens"])
def test_the_largest_numbers_are_taken(option: str) -> None:
    most = 2**64 - 1 if option == "--seed" else LARGEST_COUNT
    check_number(option, most)
    check_number(option, LARGEST_REAL)
    with pytest.raises(UserError, match=f"{option} {most + 1} does not fit"):
        check_number(option, most + 1)
    with pytest.raises(UserError, match="must be a number, of at most 1,000,000"):
        check_number(option, math.nextafter(LARGEST_REAL, math.inf))


def test_lists_of_numbers() -> None:
    assert number_list("--threads", "1,2,1", int, 1) == [1, 2]
    assert number_list("--depths", "0,.5", float) == [0, 0.5]
    for text, message in {
        "": "separated by commas",
        "1,": "separated by commas",
        "1.5": "whole numbers",
        "0": "at least 1, not 0",
        str(10**30): "does not fit 31 bits",
    }.items():
        with pytest.raises(UserError, match=message):
            number_list("--threads", text, int, 1)
    for text in ("nan", "inf", "1e30"):
        with pytest.raises(UserError, match="must be a number"):
            number_list("--bits", text, float)
