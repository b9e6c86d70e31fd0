"""The measurement protocol, the same for every system. Standard library and numpy only: it runs in every environment.

A child process measures one system once: `python -m peers.run_X JOB.json`, with scripts/ on PYTHONPATH, prints one
line of JSON. It warms up with a short run, feeds the prompt (timed as a whole), then the decode steps, each timed
alone, with the tokens of the text.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

WARM_UP = 48  # tokens of the first run: more than one prefill chunk of every system
WARM_STEPS = 4
RESULT = "RESULT "  # marks the result among whatever a library prints


class Engine(Protocol):
    """One loaded system with one cache."""

    def reset(self) -> None:
        """Start a new sequence."""

    def prefill(self, tokens: list[int]) -> None:
        """Append tokens to the empty sequence."""

    def step(self, token: int) -> None:
        """Append one token; its logits are there when this returns."""

    def logits(self) -> np.ndarray:
        """A copy of the logits after the last step, float32 [V]; not timed."""

    def facts(self) -> dict[str, Any]:
        """build, and kv_bytes and file_bytes where they are known."""


def nll(rows: list[np.ndarray], targets: list[int]) -> float:
    """Mean -log p of the targets, in nats; rows: logits [V] each."""
    total = 0.0
    for row, target in zip(rows, targets, strict=True):
        row = row.astype(np.float64)
        peak = row.max()
        total += peak + np.log(np.exp(row - peak).sum()) - row[target]
    return float(total / len(rows))


def measure(load: Callable[[dict], Engine], job: dict) -> dict[str, Any]:
    """Samples of one run. job: tokens [context + 1], steps, threads and what `load` needs."""
    tokens, steps = job["tokens"], job["steps"]
    prompt, forced = tokens[: -1 - steps], tokens[-1 - steps : -1]
    started = time.perf_counter()
    engine = load(job)
    load_s = time.perf_counter() - started
    engine.prefill(tokens[: min(WARM_UP, len(prompt))])
    for token in forced[:WARM_STEPS]:
        engine.step(token)
    engine.reset()

    started = time.perf_counter()
    engine.prefill(prompt)
    prefill_s = time.perf_counter() - started
    decode, rows = [], []
    for token in forced:
        started = time.perf_counter()
        engine.step(token)
        decode.append(1e3 * (time.perf_counter() - started))
        rows.append(engine.logits())  # the loss is computed later: exponentials here would empty the caches
    return {
        "decode_ms": [round(ms, 4) for ms in decode],
        "prefill_s": round(prefill_s, 4),
        "prefill_tokens": len(prompt),
        "load_s": round(load_s, 3),
        "peak_rss_mb": round(peak_memory() / 1024, 1),
        "nll": None if job.get("random") else round(nll(rows, tokens[-steps:]), 5),
        "cpu": cpu_name(),
        **engine.facts(),
    }


def peak_memory() -> int:
    """KiB. From /proc where there is one: getrusage's number starts with that of the parent at the fork."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} CPUs"


def child_main(load: Callable[[dict], Engine]) -> None:
    """Body of a run_*.py: the job from the file named on the command line, the result on stdout."""
    result = measure(load, json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    sys.stdout.flush()
    print("\n" + RESULT + json.dumps(result), flush=True)
    os._exit(0)  # some libraries crash or hang when they are taken apart
