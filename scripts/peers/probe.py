"""Which prefill batch of llama.cpp and ik_llama.cpp is the fastest whose loss is right.

A batch is right if the decode steps after it lose no more than those after a prompt fed in the smallest batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

BATCHES = (8, 16, 31, 64, 128, 512)
TOLERANCE = 0.05  # nats over 32 tokens: sums in another order move the loss by about .01


Details = dict[str, dict[str, float]]  # batch -> prefill_s, nll


def choose(details: Details, tolerance: float = TOLERANCE) -> tuple[int, int]:
    """(the fastest right batch, the fastest of all)."""
    reference = details[min(details, key=int)]["nll"]
    right = [batch for batch, result in details.items() if result["nll"] <= reference + tolerance]
    return int(min(right, key=lambda b: details[b]["prefill_s"])), int(
        min(details, key=lambda b: details[b]["prefill_s"])
    )


def probe(run: Callable[[int], dict[str, Any]]) -> Details | str:
    """Details of every batch, or why there are none. run(batch) is a child's result."""
    details: Details = {}
    for batch in BATCHES:
        result = run(batch)
        if "error" in result:
            return result["error"]
        details[str(batch)] = {"prefill_s": result["prefill_s"], "nll": result["nll"]}
    return details
