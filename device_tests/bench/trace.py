"""One sample as a trace for ui.perfetto.dev (Chrome's JSON trace event format; times in microseconds)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adakv_model.whole_file import write_json
from device_tests.bench.rows import Row

PHASES, STEPS = 1, 2  # thread numbers of the trace's two tracks


def events(sample: Row) -> list[dict[str, Any]]:
    """Phases on one track, the timed steps on another, memory, clocks and temperatures as counters."""
    result, started = sample["result"], sample["result"]["started_ns"]
    name = f"{sample['artifact']['name']} on {sample['device']['selector']}"
    found: list[dict[str, Any]] = [
        {"ph": "M", "pid": 1, "name": "process_name", "args": {"name": name}},
        {"ph": "M", "pid": 1, "tid": PHASES, "name": "thread_name", "args": {"name": "phases"}},
        {"ph": "M", "pid": 1, "tid": STEPS, "name": "thread_name", "args": {"name": "steps"}},
    ]
    durations = {
        "load": result["load_ns"],
        "warm_up": result["cold_step_ns"],
        "fill": result["fill_ns"],
        "prefill": sum(result["prefill_ns"]),
        "decode": sum(result["decode_ns"]),
    }
    found += [_complete(PHASES, phase, started[phase], ns, {}) for phase, ns in durations.items() if ns]
    position = sample["test"]["depth"]
    for phase, sizes in (("prefill", result["prefill_tokens"]), ("decode", [1] * len(result["decode_ns"]))):
        at = started[phase]
        for ns, tokens in zip(result[f"{phase}_ns"], sizes, strict=True):
            found.append(_complete(STEPS, f"{phase} {tokens}", at, ns, {"position": position, "tokens": tokens}))
            at, position = at + ns, position + tokens
    end = max(event["ts"] + event.get("dur", 0) for event in found if "ts" in event)
    memory = result["memory"]
    for moment, key in ((started["load"] / 1e3 + result["load_ns"] / 1e3, "loaded"), (end, "end")):
        values = {kind: memory[key][kind] / 1e6 for kind in ("anonymous", "file") if memory[key][kind] is not None}
        if values:
            found.append(_counter("resident MB", moment, values))
    for moment, key in ((0.0, "before"), (end, "after")):
        conditions = sample["conditions"][key]
        found += [_counter(f"{zone} (C)", moment, {"C": value}) for zone, value in conditions["thermal"].items()]
        clocks = result["clocks_khz"][key]
        for core, khz in zip(result["clocks_khz"]["cores"], clocks, strict=False):
            found.append(_counter(f"core {core} MHz", moment, {"MHz": khz / 1000}))
    return found


def write(sample: Row, path: Path) -> None:
    """Raises UserError."""
    content = {"displayTimeUnit": "ms", "traceEvents": events(sample), "otherData": {"test": sample["test"]}}
    write_json(path, content)


def _complete(track: int, name: str, start_ns: int, ns: int, args: dict[str, Any]) -> dict[str, Any]:
    return {"ph": "X", "pid": 1, "tid": track, "name": name, "ts": start_ns / 1e3, "dur": ns / 1e3, "args": args}


def _counter(name: str, moment: float, values: dict[str, float]) -> dict[str, Any]:
    return {"ph": "C", "pid": 1, "name": name, "ts": moment, "args": values}
