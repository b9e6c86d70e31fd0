"""The results file: what is refused, what survives a cut, and what the document says of it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from adakv_model.errors import UserError
from device_tests.bench.records import row
from device_tests.bench.rows import FIELDS, HEADER, ResultsFile, read, validate
from device_tests.bench.testing_device import artifact_record, device_record, probe_row, sample

DOCUMENT = (Path(__file__).parents[2] / "docs" / "bench-schema.md").read_text(encoding="utf-8")


def header(**options: Any) -> dict[str, Any]:
    return row(HEADER, run="r", version="1", options={"pp": "1", **options})


def written(path: Path, *rows: dict[str, Any]) -> Path:
    results = ResultsFile(path, header(), resume=False)
    for one in rows:
        results.append(one)
    results.close()
    return path


def test_rows_come_back(tmp_path: Path) -> None:
    one, other = sample(), probe_row("a", True)
    assert read(written(tmp_path / "x.jsonl", one, other))[1:] == [one, other]


@pytest.mark.parametrize("cut", [1, 7, 200])
def test_half_a_line_is_dropped_and_written_over(tmp_path: Path, cut: int) -> None:
    path = written(tmp_path / "x.jsonl", sample(rep=0), sample(rep=1))
    data = path.read_bytes()
    path.write_bytes(data[:-cut])
    assert [one.get("rep") for one in read(path)] == [None, 0]
    results = ResultsFile(path, header(), resume=True)
    results.append(sample(rep=2))
    results.close()
    assert [one.get("rep") for one in read(path)] == [None, 0, 2]
    assert all(json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())


def test_a_file_is_never_overwritten_unasked(tmp_path: Path) -> None:
    path = written(tmp_path / "x.jsonl", sample())
    before = path.read_bytes()
    with pytest.raises(UserError, match="exists: name another file, or go on with --resume"):
        ResultsFile(path, header(), resume=False)
    with pytest.raises(UserError, match="was made with other pp, text"):
        ResultsFile(path, header(pp="2", text="b"), resume=True)
    assert path.read_bytes() == before


def test_going_on_keeps_the_run(tmp_path: Path) -> None:
    path = written(tmp_path / "x.jsonl")
    results = ResultsFile(path, {**header(), "run": "another"}, resume=True)
    assert results.run == "r"
    results.close()


@pytest.mark.parametrize("content", ["{}\n", "[1]\n", "nonsense\n", "\xff\n", '{"schema": "adakv-bench-9"}\n'])
def test_other_files_are_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(content.encode("latin1"))
    for attempt in (lambda: read(path), lambda: ResultsFile(path, header(), resume=True)):
        with pytest.raises(UserError, match="is not a results file"):
            attempt()
    assert path.read_bytes() == content.encode("latin1")


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    with pytest.raises(UserError, match="cannot write"):
        ResultsFile(tmp_path / "x" / "y", header(), resume=False)
    with pytest.raises(UserError, match="cannot read"):
        read(tmp_path / "missing")
    (tmp_path / "empty").touch()
    with pytest.raises(UserError, match="holds no results"):
        read(tmp_path / "empty")


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "x.jsonl", sample())
    results = ResultsFile(path, header(), resume=True)
    write = os.write

    def full(descriptor: int, data: bytes) -> int:
        if len(data) < 100:
            raise OSError(28, "No space left on device")
        return write(descriptor, data[: len(data) // 2])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(UserError, match=r"No space left on device.*--resume"):
            results.append(sample(rep=1))
    results.close()
    assert len(read(path)) == 2


@pytest.mark.parametrize("kind", ["sample", "probe", "header"])
def test_every_field_is_required_and_typed(kind: str) -> None:
    whole = {"sample": sample(), "probe": probe_row("a", True), "header": header()}[kind]
    validate(whole)
    for name in FIELDS[kind]:
        with pytest.raises(ValueError, match=name):
            validate({n: v for n, v in whole.items() if n != name})
        with pytest.raises(ValueError, match=name):
            validate({**whole, name: 1.5})


def test_the_document_names_every_field() -> None:
    said = {name for fields in FIELDS.values() for name in fields}
    said |= device_record().keys() | artifact_record("a").keys()
    one = sample()
    said |= one["result"].keys() | one["conditions"]["before"].keys() | one["cooldown"].keys()
    assert [name for name in sorted(said) if f"`{name}`" not in DOCUMENT and f'"{name}"' not in DOCUMENT] == []
