"""The runner's side of the benchmark: command lines and the object it prints (docs/bench-schema.md)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from adakv_model.errors import UserError
from device_tests.bench.cores import Placement
from device_tests.bench.plan import Test
from device_tests.devices import Completed
from device_tests.devices.processes import last_line

SCHEMA = "adakv-run-1"
OUT_OF_MEMORY = 137  # killed with signal 9, which is what a low-memory killer sends


class RunFailed(UserError):
    """The runner did not end well on the device."""


def benchmark_args(artifact: str, tokens: str, test: Test, placement: Placement) -> list[str]:
    """artifact, tokens: names relative to the remote folder."""
    args = ["--artifact", artifact, "--tokens-file", tokens, "--bench"]
    args += ["--pp", str(test.pp), "--tg", str(test.tg), "--depth", str(test.depth)]
    return args + placement_args(placement)


def force_args(artifact: str, tokens: str, forced: int, logits: str, placement: Placement) -> list[str]:
    """The parity probe: logits of the prefill's last token and of `forced` more go to a file."""
    args = ["--artifact", artifact, "--tokens-file", tokens, "--force", str(forced), "--logits", logits]
    return args + placement_args(placement)


def placement_args(placement: Placement) -> list[str]:
    mask = ["--cpu-mask", placement.mask] if placement.mask else []
    return ["--threads", str(placement.threads), *mask]


def parse_result(done: Completed) -> dict[str, Any]:
    """The last line of a run. Raises RunFailed with the runner's own words where there is no such object."""
    if done.status == OUT_OF_MEMORY:
        raise RunFailed("the runner was killed (status 137): the device ran out of memory, or somebody ended it")
    if done.status:
        raise RunFailed(f"the runner failed with status {done.status} ({last_line(done)})")
    lines = done.stdout.strip().splitlines()
    try:
        result = json.loads(lines[-1]) if lines else None
    except ValueError:
        result = None
    if not isinstance(result, dict) or result.get("schema") != SCHEMA:
        raise RunFailed(f"the runner printed no {SCHEMA} object: is it of this version?")
    return result


def milliseconds_per_token(result: dict[str, Any]) -> float:
    """Of the timed part, prefill or decode: all of its time over all of its tokens."""
    if result["decode_ns"]:
        return sum(result["decode_ns"]) / len(result["decode_ns"]) / 1e6
    return sum(result["prefill_ns"]) / sum(result["prefill_tokens"]) / 1e6


def is_complete(result: dict[str, Any]) -> bool:
    """Whether every token asked for was timed."""
    test = result["test"]
    return len(result["decode_ns"]) == test["tg"] and sum(result["prefill_tokens"]) == test["pp"]


THROTTLED = 0.85  # of the clock before: a drop over 15 %


def throttled(result: dict[str, Any]) -> bool | None:
    """Whether a core of the run was more than 15 % slower right after the timed steps than before; None: not told."""
    clocks = result.get("clocks_khz") or {}
    before: Sequence[int] = clocks.get("before") or ()
    after: Sequence[int] = clocks.get("after") or ()
    if not before or len(before) != len(after):
        return None
    # A core that idled is slower too: only the fastest cores, on which the run went on, tell.
    threads = result["runner"].get("threads") or len(after)
    pairs = sorted(zip(after, before, strict=True), reverse=True)[:threads]
    return any(now < THROTTLED * then for now, then in pairs)
