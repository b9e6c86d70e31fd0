"""The results file: JSON lines, one object a line, appended as runs finish. docs/bench-schema.md explains the fields.

The first line is the header, with the options; then a line for every device, probe, sample and failure. A line is
written whole and synchronised to the disk; the half of a line that a cut leaves at the end is dropped on reading.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adakv_model.errors import UserError
from adakv_model.whole_file import append_whole

SCHEMA = "adakv-bench-1"
Row = dict[str, Any]

HEADER, DEVICE, PROBE, SAMPLE, FAILURE = "header", "device", "probe", "sample", "failure"

#: Fields of every kind of row beside `schema`, `kind` and `time`, with the JSON types they may have.
FIELDS: dict[str, dict[str, tuple[type, ...]]] = {
    HEADER: {"run": (str,), "version": (str,), "options": (dict,)},
    DEVICE: {"device": (dict,)},
    PROBE: {"device": (str,), "artifact": (dict,), "passed": (bool,), "agreement": (dict,), "bounds": (dict,)},
    SAMPLE: {
        "run": (str,),
        "device": (dict,),
        "artifact": (dict,),
        "test": (dict,),
        "threads": (int,),
        "cpu_mask": (str, type(None)),
        "slow_cores": (bool,),
        "rep": (int,),
        "result": (dict,),
        "conditions": (dict,),
        "cooldown": (dict,),
        "throttled": (bool, type(None)),
    },
    FAILURE: {
        "device": (str,),
        "artifact": (dict,),
        "test": (dict, type(None)),
        "rep": (int, type(None)),
        "error": (str,),
    },
}


def validate(row: Row) -> None:
    """Raises ValueError, which names the field, for a row that is not of this schema."""
    if row.get("schema") != SCHEMA:
        raise ValueError(f"schema is {row.get('schema')!r}, not {SCHEMA!r}")
    fields = FIELDS.get(row.get("kind", ""))
    if fields is None:
        raise ValueError(f"unknown kind {row.get('kind')!r}")
    for name, types in {"time": (str,), **fields}.items():
        if name not in row:
            raise ValueError(f"{row['kind']} lacks {name}")
        value = row[name]
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise ValueError(f"{row['kind']}.{name} is {type(value).__name__}")


def sample_key(row: Row) -> tuple[Any, ...]:
    """Of a sample: what a resumed run must not repeat."""
    test = row["test"]
    return (
        row["device"]["selector"],
        row["artifact"]["id"],
        (test["depth"], test["pp"], test["tg"]),
        row["threads"],
        row["cpu_mask"],
        row["rep"],
    )


def read(path: Path) -> list[Row]:
    """All rows. Raises UserError for a file that is none of these."""
    try:
        rows = [row for row, _ in _lines(path.read_bytes())]
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror})") from error
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a results file of the benchmark ({error}): name another") from error
    if not rows:
        raise UserError(f"{path} holds no results: name another")
    return rows


def _lines(data: bytes) -> Iterator[tuple[Row, int]]:
    """Rows with the offset at which each ends; a last line without its end is left out."""
    end = 0
    for line in data.splitlines(keepends=True):
        if not line.endswith(b"\n"):
            return
        end += len(line)
        row = json.loads(line)
        if not isinstance(row, dict):
            raise ValueError("a line is no object")
        validate(row)
        yield row, end


class ResultsFile:
    """Rows of one run, also from several threads."""

    def __init__(self, path: Path, header: Row, resume: bool) -> None:
        """header: a HEADER row; with resume, a file that is there must have one with equal options and is continued,
        under its own run id. Raises UserError."""
        validate(header)
        self.path, self.rows = path, list[Row]()
        self._lock = threading.Lock()
        if path.exists() and path.stat().st_size and not resume:
            raise UserError(f"{path} exists: name another file, or go on with --resume")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(f"cannot write {path} ({error.strerror}): choose another place") from error
        self._continue() if resume else None
        if self.rows:
            _require_equal_options(path, self.rows[0], header)
        else:
            self.append(header)

    @property
    def run(self) -> str:
        return str(self.rows[0]["run"])

    def append(self, row: Row) -> None:
        """Raises UserError where the disk is full; the file then ends with the row before."""
        validate(row)
        line = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode(errors="backslashreplace")
        with self._lock:
            try:
                append_whole(self._descriptor, line, self.path, sync=True)
            except OSError as error:
                raise UserError(f"cannot write {self.path} ({error.strerror}): make room, then --resume") from error
            self.rows.append(row)

    def of(self, kind: str) -> list[Row]:
        with self._lock:
            return [row for row in self.rows if row["kind"] == kind]

    def close(self) -> None:
        os.close(self._descriptor)

    def _continue(self) -> None:
        data, end = self.path.read_bytes(), 0
        try:
            for row, end in _lines(data):  # noqa: B007  (the last end is wanted)
                self.rows.append(row)
        except (ValueError, UnicodeDecodeError) as error:
            raise UserError(f"{self.path} is not a results file of the benchmark ({error}): name another") from error
        os.ftruncate(self._descriptor, end)
        if self.rows and self.rows[0]["kind"] != HEADER:
            raise UserError(f"{self.path} does not begin with a header: name another file")


def _require_equal_options(path: Path, found: Row, wanted: Row) -> None:
    a, b = found["options"], wanted["options"]
    different = sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))
    if different:
        raise UserError(f"{path} was made with other {', '.join(different)}: name another file")
