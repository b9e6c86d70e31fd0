"""Rules that hold for every Python file here and that no linter checks."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TERMINAL = "adakv_model/terminal.py"


def calls() -> Iterator[tuple[str, ast.Call]]:
    """Every call of every file under version control, with where it is."""
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.split():
        if (ROOT / name).is_file():
            for node in ast.walk(ast.parse((ROOT / name).read_bytes())):
                if isinstance(node, ast.Call):
                    yield f"{name}:{node.lineno}", node


def method(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def text_mode(call: ast.Call) -> bool:
    """Whether a call of open() or Path.open() asks for text."""
    at = 0 if isinstance(call.func, ast.Attribute) else 1
    modes = [k.value for k in call.keywords if k.arg == "mode"] + call.args[at : at + 1]
    if not modes:
        return isinstance(call.func, ast.Name) or not call.args
    mode = modes[0]
    return isinstance(mode, ast.Constant) and isinstance(mode.value, str) and set(mode.value) <= set("rwxat+")


def test_text_files_have_an_encoding() -> None:
    """A locale's encoding would write other bytes on another machine. ruff's PLW1514 does not follow types this far."""
    found = []
    for place, call in calls():
        name, keywords = method(call), {keyword.arg for keyword in call.keywords}
        is_path = isinstance(call.func, ast.Attribute) and not (
            isinstance(call.func.value, ast.Name) and call.func.value.id in ("results", "os")
        )
        opens = (name in ("read_text", "write_text") and is_path) or (name == "open" and text_mode(call))
        if opens and "encoding" not in keywords:
            found.append(place)
    assert found == []


def test_consoles_take_text_as_it_is() -> None:
    """rich reads [brackets] as markup: a path such as `a[/b]` would end in an exception, `a[red]` would lose a part."""
    direct = [p for p, call in calls() if method(call) in ("Console", "TextColumn") and not p.startswith(TERMINAL)]
    assert direct == []
