"""A scripted device: real processes on this machine, whose runner is a script that invents times. For tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from device_tests.bench.plan import Test
from device_tests.bench.records import row
from device_tests.bench.rows import PROBE, SAMPLE, Row
from device_tests.devices import Bundle, BundleFile, Completed, Conditions, DeviceLost
from device_tests.devices.local import LocalDevice

RUNNER = Path(__file__).parent / "testing_runner.py"


class ScriptedDevice(LocalDevice):
    """calls: the arguments of every run. before_run: called with the number of runs so far; it may raise."""

    def __init__(self, selector: str = "host", emulated: bool = True, conditions: Conditions | None = None) -> None:
        super().__init__(selector, "x86_64")
        self.emulated = emulated
        self.calls: list[Sequence[str]] = []
        self.before_run: Callable[[int], None] = lambda runs: None
        self.cleaned = 0
        self._conditions = conditions or Conditions("machine", os_build="1")

    def bundle(self, artifacts: Sequence[Path]) -> Bundle:
        bundle = Bundle({"runner": BundleFile.of(RUNNER, executable=True)}, ("python3", "runner"), "x86_64")
        for folder in artifacts:
            bundle = bundle.with_artifact(folder)
        return bundle

    def run(self, bundle: Bundle, args: Sequence[str], timeout: float) -> Completed:
        self.before_run(len(self.calls))
        self.calls.append(args)
        return super().run(bundle, args, timeout)

    def conditions(self) -> Conditions:
        return replace(self._conditions)

    def clean(self) -> None:
        self.cleaned += 1
        super().clean()


def unplug(after: int) -> Callable[[int], None]:
    """For before_run: the device is gone after that many runs."""

    def look(runs: int) -> None:
        if runs >= after:
            raise DeviceLost("the cable was pulled")

    return look


def sample(
    artifact: str = "a",
    ms: float = 1.0,
    rep: int = 0,
    run: str = "r",
    test: Test | None = None,
    device: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Row:
    """A valid sample row of a decode test with equal steps."""
    test = test or Test(0, 0, 4)
    memory = {"rss": 2 * 10**8, "anonymous": 5 * 10**7, "file": 10**8}
    result = {
        "schema": "adakv-run-1",
        "runner": {"isa": "dotprod", "threads": 2, "cpu_mask": None, "platform": "android"},
        "test": test.to_json(),
        "load_ns": 10**8,
        "cold_step_ns": 10**7,
        "fill_ns": 10**8 if test.depth else 0,
        "prefill_ns": [round(ms * 1e6 * test.pp)] if test.pp else [],
        "prefill_tokens": [test.pp] if test.pp else [],
        "decode_ns": [round(ms * 1e6)] * test.tg,
        "first_token_ns": None,
        "started_ns": {"load": 0, "warm_up": 10**8, "fill": 2 * 10**8, "prefill": 3 * 10**8, "decode": 4 * 10**8},
        "clocks_khz": {"cores": [0, 1], "before": [2000000, 2000000], "after": [2000000, 1900000]},
        "memory": {"loaded": memory, "end": memory, "peak": 3 * 10**8},
        "cache": {"bytes": 10**7, "tokens_by_tier": [7, 1], "position": test.tokens},
        "finish_reason": "done",
    }
    state = {
        "clocks_khz": [None],
        "thermal": {"cpu": 40.0},
        "thermal_status": None,
        "battery": None,
        "memory_available": 10**9,
        "load": None,
    }
    return row(
        SAMPLE,
        **{
            "run": run,
            "device": device_record(**(device or {})),
            "artifact": artifact_record(artifact),
            "test": test.to_json(),
            "threads": 2,
            "cpu_mask": None,
            "slow_cores": False,
            "rep": rep,
            "result": result,
            "conditions": {"before": state, "after": state},
            "cooldown": {"target": None, "celsius": 40.0, "waited": 0.0, "reached": True},
            "throttled": False,
            **changes,
        },
    )


def device_record(**changes: Any) -> Row:
    """A phone's."""
    return {
        "selector": "adb:1",
        "kind": "adb",
        "emulated": False,
        "model": "Phone",
        "soc": "SoC",
        "abi": "arm64-v8a",
        "os_build": "15",
        "cpu_features": [],
        "cores": [],
        "governors": ["schedutil"],
        "memory_total": 8 * 2**30,
        **changes,
    }


def artifact_record(name: str) -> Row:
    return {
        "name": name,
        "id": name,
        "bytes": 10**8,
        "model": "smollm2-135m-instruct",
        "random_weights": False,
        "quantize": "8da4w-asym",
        "policy": "adaptive",
        "context": 2048,
        "cache_bytes": 10**7,
        "fp16_bytes": 5 * 10**7,
        "bits_per_value": 3.2,
        "tier_bits": [2.5, 4],
        "capacities": [1000, 1000],
    }


def probe_row(artifact: str, passed: bool, device: str = "adb:1") -> Row:
    agreement = {"max_difference": 0.1, "mean_kl": None if not passed else 0.001, "top1": 0.5, "tie_gap": 0.0}
    bounds = {"max_kl": 0.06, "min_top1": 0.86, "prompt": 64, "forced": 32}
    return row(
        PROBE, device=device, artifact=artifact_record(artifact), passed=passed, agreement=agreement, bounds=bounds
    )
