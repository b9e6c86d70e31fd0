"""The Swift core against this implementation: its test vectors are current, and it needs no Apple framework."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest

from device_tests.coreml.swift_fixtures import FOLDER, fixtures
from device_tests.exporting import ROOT

CORE = ROOT / "ios" / "Sources" / "AdaKVCore"
SCHEMA = ROOT / "docs" / "bench-schema.md"


@pytest.fixture(scope="module")
def current() -> dict:
    """As JSON has them: no tuples, no numpy numbers."""
    return json.loads(json.dumps(fixtures()))


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("*.json") if path.name != "tokenizer.json"))
def test_vectors_are_current(name: str, current: dict) -> None:
    saved = json.loads((FOLDER / name).read_text(encoding="utf-8"))
    assert saved == current[name], "python -m device_tests.coreml.swift_fixtures writes them anew"


def test_every_vector_is_saved(current: dict) -> None:
    assert set(current) <= {path.name for path in FOLDER.iterdir()}


def test_the_core_imports_foundation_only() -> None:
    sources = "\n".join(path.read_text(encoding="utf-8") for path in CORE.glob("*.swift"))
    assert set(re.findall(r"^(?:@\w+ )?import (\w+)", sources, re.MULTILINE)) == {"Foundation"}


def test_the_runner_knows_the_words_of_the_schema() -> None:
    """Those of docs/bench-schema.md that Core ML has a use for; it refuses the other two with a reason."""
    usage = SCHEMA.read_text(encoding="utf-8").split("The object of")[0]
    words = set(re.findall(r"--[a-z][a-z-]*", usage))
    source = (CORE / "RunOptions.swift").read_text(encoding="utf-8")
    assert words
    assert [word for word in sorted(words) if f'"{word}"' not in source] == []


@pytest.mark.parametrize(
    ("path", "opening"),
    [
        ("ios/Tests/AdaKVCoreTests/MeasuringTests.swift", "Set(fields.keys),"),
        ("android/adakv/src/test/kotlin/org/adakv/CoreTest.kt", "setOf("),
    ],
)
def test_reports_of_apps_have_the_fields_of_the_schema(path: str, opening: str) -> None:
    """The apps' own tests hold their reports to a list of fields; here the list is held to docs/bench-schema.md."""
    table = SCHEMA.read_text(encoding="utf-8").partition("The object of `--bench`")[2].partition("\n\n`--force`")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    listed = (ROOT / path).read_text(encoding="utf-8").partition(opening)[2].partition(")")[0]
    assert set(re.findall(r'"(\w+)"', listed)) == {name for row in rows for name in re.findall(r"`(\w+)`", row)}


@pytest.mark.skipif(shutil.which("swift") is None, reason="no Swift compiler here")
def test_the_core_passes_its_own_tests() -> None:
    done = subprocess.run(
        ["swift", "test", "--package-path", "ios", "--filter", "AdaKVCoreTests"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
