"""The house keeps its order: imports go one way over the floors, nothing imports in a circle, files stay short."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ("adakv_model", "export", "device_tests", "scripts", "adakv")  # each may import those before it
LONGEST = 400  # lines of a source file
SOURCES = (".py", ".cpp", ".h", ".swift", ".kt", ".sh")


@cache
def listed() -> tuple[str, ...]:
    """Files under version control."""
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    return tuple(name for name in done.stdout.split() if (ROOT / name).is_file())


def is_test(name: str) -> bool:
    return Path(name).name.startswith(("test_", "testing", "conftest"))


@cache
def modules() -> dict[str, str]:
    """Module -> file. Those in scripts/ are imported without the folder's name."""
    found = {}
    for name in listed():
        if name.endswith(".py") and name.split("/")[0] in FLOORS:
            parts = Path(name).with_suffix("").parts
            parts = parts[1:] if parts[0] == "scripts" else parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = name
    return found


def imports(name: str, *, everywhere: bool) -> Iterator[str]:
    """Modules of this project that a file imports: anywhere, or at its top, which runs when it is imported itself."""
    tree = ast.parse((ROOT / name).read_bytes())
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            wanted = [f"{node.module}.{alias.name}" for alias in node.names]
            wanted = [full if full in modules() else node.module for full in wanted]
        else:
            continue
        yield from (module for module in wanted if module in modules())


def floor(name: str) -> int:
    return FLOORS.index(name.split("/")[0])


def test_no_module_imports_upward() -> None:
    found = []
    for name in modules().values():
        if not is_test(name):
            found += [f"{name} -> {m}" for m in imports(name, everywhere=True) if floor(modules()[m]) > floor(name)]
    assert found == []


def test_no_circle() -> None:
    graph = {name: {modules()[m] for m in imports(name, everywhere=False)} - {name} for name in modules().values()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_no_source_file_is_long() -> None:
    sizes = {n: len((ROOT / n).read_bytes().splitlines()) for n in listed() if n.endswith(SOURCES)}
    assert {name: size for name, size in sizes.items() if size > LONGEST} == {}
