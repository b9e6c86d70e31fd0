"""Per-item results on disk: an interrupted evaluation continues, and every comparison reads the same items.

One JSON-lines file for each identity (data, checkpoint, policy, options, FORMAT). The first line is that identity,
the others one item each. Lines are appended in single writes; a line cut short by a crash is ignored and made again.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adakv_model.errors import UserError

FORMAT = 1  # raise it when scoring or simulation change what is stored


class ItemStore:
    """Records by key. Raises UserError if the folder cannot be written."""

    def __init__(self, folder: Path, title: str, identity: Mapping[str, Any]) -> None:
        self.identity = {"format": FORMAT, **identity}
        content = json.dumps(self.identity, sort_keys=True, default=str)
        self.digest = hashlib.sha256(content.encode()).hexdigest()[:16]
        self.path = folder / f"{title}-{self.digest}.jsonl"
        self._records: dict[str, dict[str, Any]] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            data = self.path.read_bytes() if self.path.is_file() else b""
        except OSError as error:
            raise UserError(f"cannot use {folder} ({error.strerror}): pass another --work-dir") from error
        for line in data.split(b"\n"):
            record = _parsed(line)
            if record is not None and "key" in record and _finite(record):
                self._records[record["key"]] = record
        self._torn = bool(data) and not data.endswith(b"\n")
        if not data:
            self._write(json.dumps({"identity": self.identity}, sort_keys=True, default=str))

    def __contains__(self, key: str) -> bool:
        return key in self._records

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self._records[key]

    def add(self, key: str, record: Mapping[str, Any]) -> None:
        """Store one item's record, at once. Raises UserError for NaN or infinity in it."""
        stored = {"key": key, **record}
        if not _finite(stored):
            raise UserError(f"item {key} has a result that is no number: the weights or the program are damaged")
        self._write(json.dumps(stored))
        self._records[key] = json.loads(json.dumps(stored))

    def clear(self) -> None:
        """Forget every record."""
        self._records = {}
        self.path.unlink(missing_ok=True)
        self._torn = False
        self._write(json.dumps({"identity": self.identity}, sort_keys=True, default=str))

    def _write(self, line: str) -> None:
        data = ("\n" if self._torn else "") + line + "\n"
        try:
            handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                written = os.write(handle, data.encode())
            finally:
                os.close(handle)
        except OSError as error:
            raise UserError(f"cannot write {self.path} ({error.strerror}): pass another --work-dir") from error
        self._torn = written < len(data.encode())
        if self._torn:
            raise UserError(f"the disk of {self.path} is full: free some space or pass another --work-dir")


def _finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, Mapping):
        return all(map(_finite, value.values()))
    return all(map(_finite, value)) if isinstance(value, list | tuple) else True


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError):
        return None
    return record if isinstance(record, dict) else None
