"""Sources that no compiler here reads, parsed: Swift, Kotlin and Gradle's Kotlin."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import tree_sitter_kotlin
import tree_sitter_swift
from tree_sitter import Language, Node, Parser

from device_tests.exporting import ROOT

GRAMMARS = {
    ".swift": Language(tree_sitter_swift.language()),
    ".kt": Language(tree_sitter_kotlin.language()),
    ".kts": Language(tree_sitter_kotlin.language()),
}
BUILT = {".build", "build", ".gradle"}
LINE = 120
SOURCES = sorted(
    path
    for folder in ("ios", "android")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in GRAMMARS and not BUILT & set(path.relative_to(ROOT).parts)
)


def mistakes(node: Node) -> Iterator[str]:
    """Line and text of what the grammar does not know, or misses."""
    if node.type == "ERROR" or node.is_missing:
        text = (node.text or b"").decode(errors="replace").splitlines() or [node.type]
        yield f"line {node.start_point.row + 1}: {text[0]}"
    elif node.has_error:
        for child in node.children:
            yield from mistakes(child)


def parsed(source: bytes, suffix: str) -> list[str]:
    return list(mistakes(Parser(GRAMMARS[suffix]).parse(source).root_node))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_parses(path: Path) -> None:
    assert parsed(path.read_bytes(), path.suffix) == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_lines_fit(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [number for number, line in enumerate(lines, 1) if len(line) > LINE] == []


@pytest.mark.parametrize(
    ("suffix", "source"), [(".swift", "func f( { }"), (".kt", "fun f(: Int {}"), (".kts", "plugins { id(\n")]
)
def test_a_mistake_is_seen(suffix: str, source: str) -> None:
    assert parsed(source.encode(), suffix)


def test_every_language_is_there() -> None:
    assert {path.suffix for path in SOURCES} == set(GRAMMARS)
