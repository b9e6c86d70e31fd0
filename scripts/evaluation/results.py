"""The results file: one JSON object a line, appended by every evaluation and read by the plots."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from adakv_model import whole_file
from adakv_model.errors import UserError
from adakv_model.whole_file import append_line

DEFAULT = Path("results") / "results.jsonl"
#: Two lines with the same values of these are the same point; the later one counts.
POINT = ("task", "model", "policy", "kv_bits", "artifact", "context", "window", "window_bits", "n")


def finite(value: Any) -> Any:
    """JSON has no NaN: undefined standard errors become null."""
    if isinstance(value, Mapping):
        return {key: finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def with_error(value: float, se: float | None, digits: int = 5, *, sign: str = "") -> str:
    """`value ± se`; the value alone where fewer than two clusters leave no standard error. sign: "+" shows plus."""
    shown = f"{value:{sign}.{digits}f}"
    return shown if se is None or math.isnan(se) else f"{shown} ± {se:.{digits}f}"


def append(path: Path, result: Mapping[str, Any]) -> None:
    """Add one line. Raises UserError if the file cannot be written."""
    append_line(path, json.dumps(finite(result), sort_keys=True), "pass another --results")


def read(path: Path) -> list[dict[str, Any]]:
    """The newest line of every point, oldest point first. Raises UserError for a missing or malformed file."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
    except OSError as error:
        raise UserError(f"no results at {path} ({error.strerror}): make some with `adakv evaluate`") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is damaged ({error}): remove the broken line") from error
    return list(_newest(rows).values())


def _newest(rows: Iterable[dict[str, Any]]) -> dict[tuple, dict[str, Any]]:
    newest: dict[tuple, dict[str, Any]] = {}
    for row in rows:
        point = tuple(json.dumps(row.get(name)) for name in POINT)
        newest.pop(point, None)
        newest[point] = row
    return newest


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Raises UserError."""
    whole_file.write_json(path, finite(content))
