"""Which prefill batch of llama.cpp and ik_llama.cpp is the fastest whose loss is right.

A batch is right if the decode steps after it lose no more than those after a prompt fed in the smallest batch.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

BATCHES = (8, 16, 31, 64, 128, 512)
TOLERANCE = 0.05  # nats over 32 tokens: sums in another order move the loss by about .01


def choose(results: dict[int, tuple[float, float]], tolerance: float = TOLERANCE) -> tuple[int, int]:
    """results: batch -> (prefill seconds, loss). (the fastest right batch, the fastest of all)."""
    reference = results[min(results)][1]
    right = [batch for batch, (_, loss) in results.items() if loss <= reference + tolerance]
    return min(right, key=lambda b: results[b][0]), min(results, key=lambda b: results[b][0])


def probe(run: Callable[[int], dict[str, Any]], kept: Path) -> tuple[tuple[int, int], dict[str, Any]] | str:
    """(choice, details by batch), or why there is none. run(batch) is a child's result; kept: JSON of earlier ones."""
    if kept.is_file():
        details = json.loads(kept.read_text())
    else:
        details = {}
        for batch in BATCHES:
            result = run(batch)
            if "error" in result:
                return result["error"]
            details[str(batch)] = {"prefill_s": result["prefill_s"], "nll": result["nll"]}
        kept.write_text(json.dumps(details))
    return choose({int(b): (d["prefill_s"], d["nll"]) for b, d in details.items()}), details
