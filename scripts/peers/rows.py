"""From the samples of all rounds to one row for every system, cache, context and number of threads."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

from peers.systems import REFERENCES, Variant

COLUMNS = (
    "system",
    "cache",
    "context",
    "threads",
    "decode_ms_min",
    "decode_ms_median",
    "decode_ms_p90",
    "prefill_ms_per_token",
    "load_s",
    "peak_rss_mb",
    "kv_bytes",
    "file_bytes",
    "nll",
    "build",
    "cpu",
)
#: Beside COLUMNS: batch, rounds, nll_reference, wrong (None: no loss to compare).


def percentile(values: list[float], share: float) -> float:
    """Linear interpolation between the sorted values, as numpy's default."""
    values = sorted(values)
    at = share * (len(values) - 1)
    low = int(at)
    high = min(low + 1, len(values) - 1)
    return values[low] + (at - low) * (values[high] - values[low])


def make_rows(cells: Iterable[dict[str, Any]], tolerance: float) -> list[dict[str, Any]]:
    """Rows in the order in which their cells appeared. Decode statistics are over all steps of all rounds; prefill is
    the fastest round, load and memory are medians. tolerance: nats above the reference's loss that make a row wrong."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for cell in cells:
        if "error" not in cell:
            key = (cell["system"], cell["cache"], cell["batch"], cell["flawed"], cell["context"], cell["threads"])
            groups.setdefault(key, []).append(cell)
    rows = [_row(key, group) for key, group in groups.items()]
    for row in rows:
        reference = _reference(rows, row["context"])
        row["nll_reference"] = reference
        row["wrong"] = None if reference is None or row["nll"] is None else row["nll"] > reference + tolerance
    rows.sort(key=lambda row: (row["context"], row["threads"]))
    return rows


def _row(key: tuple, group: list[dict[str, Any]]) -> dict[str, Any]:
    system, cache, batch, flawed, context, threads = key
    decode = [ms for cell in group for ms in cell["decode_ms"]]
    losses = [cell["nll"] for cell in group if cell["nll"] is not None]
    return {
        "system": system,
        "cache": Variant(system, cache, batch, flawed).label,
        "context": context,
        "threads": threads,
        "decode_ms_min": round(min(decode), 3),
        "decode_ms_median": round(statistics.median(decode), 3),
        "decode_ms_p90": round(percentile(decode, 0.9), 3),
        "prefill_ms_per_token": round(min(1e3 * cell["prefill_s"] / cell["prefill_tokens"] for cell in group), 4),
        "load_s": round(statistics.median(cell["load_s"] for cell in group), 3),
        "peak_rss_mb": round(statistics.median(cell["peak_rss_mb"] for cell in group), 1),
        "kv_bytes": group[-1]["kv_bytes"],
        "file_bytes": group[-1]["file_bytes"],
        "nll": round(statistics.median(losses), 5) if losses else None,
        "build": group[-1]["build"],
        "cpu": group[-1]["cpu"],
        "batch": batch or None,
        "rounds": len(group),
    }


def _reference(rows: list[dict[str, Any]], context: int) -> float | None:
    """The loss of the first of REFERENCES that ran at this context."""
    for system, cache in REFERENCES:
        for row in rows:
            if (row["system"], row["cache"], row["context"]) == (system, cache, context) and row["nll"] is not None:
                return row["nll"]
    return None
