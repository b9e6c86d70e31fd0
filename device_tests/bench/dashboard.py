"""Our rows in the schema of PyTorch's benchmark database, which ExecuTorch's dashboard shows.

That schema: github.com/pytorch/pytorch/wiki/How-to-integrate-with-PyTorch-OSS-benchmark-database; ExecuTorch fills it
in its .github/scripts/extract_benchmark_results.py, whose names of metrics are used here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from adakv_model.whole_file import write_json
from device_tests.bench.rows import Row
from device_tests.bench.summary import Group, groups

APPS = {"adb": "ANDROID_APP", "ios": "IOS_APP"}


def records(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """One a metric and group, of what passes parity. An emulated device says so in its name."""
    return [record for group in groups(rows) for record in _of_group(group)]


def write(rows: Iterable[Row], path: Path) -> None:
    """Raises UserError."""
    write_json(path, records(rows))


def _of_group(group: Group) -> Iterator[dict[str, Any]]:
    device, artifact, results = group.device, group.artifact, [sample["result"] for sample in group.samples]
    emulated = " (not a phone)" if device["emulated"] else ""
    memory = [sample["conditions"]["before"]["memory_available"] for sample in group.samples]
    available = [value for value in memory if value is not None]
    per_token = [1000 / ms for ms in group.ms]
    yield from (
        {
            "benchmark": {
                "name": "ExecuTorch",
                "mode": "inference",
                "extra_info": {
                    "app_type": APPS.get(device["kind"], "CLI"),
                    "benchmark_config": json.dumps(
                        {**group.test.to_json(), "threads": group.threads, "cpu_mask": group.first["cpu_mask"]}
                    ),
                },
            },
            "model": {
                "name": artifact["model"],
                "type": "OSS model",
                "backend": f"adakv_{artifact['policy']}_{artifact['bits_per_value']:.2f}bit_{artifact['quantize']}",
            },
            "metric": {
                "name": name,
                "benchmark_values": values,
                "target_value": 0,
                "extra_info": {"method": group.test.name},
            },
            "runners": [
                {
                    "name": device["model"] + emulated,
                    "type": device["os_build"] or "",
                    "avail_mem_in_gb": round(float(np.mean(available)) / 2**30, 2) if available else "",
                    "total_mem_in_gb": round(device["memory_total"] / 2**30, 2) if device["memory_total"] else "",
                }
            ],
        }
        for name, values in (
            ("token_per_sec", per_token),
            ("avg_inference_latency(ms)", group.ms),
            ("model_load_time(ms)", [result["load_ns"] / 1e6 for result in results]),
            ("peak_inference_mem_usage(mb)", [result["memory"]["peak"] / 2**20 for result in results]),
        )
    )
