"""What rows say of devices and artifacts."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from adakv_model.errors import UserError
from adakv_model.runtime.artifact import Artifact
from device_tests.bench.rows import SCHEMA, Row
from device_tests.devices import Bundle, Conditions, Device


def row(kind: str, **fields: Any) -> Row:
    """A row of a results file, stamped."""
    return {"schema": SCHEMA, "kind": kind, "time": datetime.now(UTC).isoformat(timespec="seconds"), **fields}


def device_record(device: Device, conditions: Conditions) -> Row:
    """What does not change during a run; `emulated` results are never shown as a phone's."""
    return {
        "selector": device.selector,
        "kind": device.kind,
        "emulated": device.emulated,
        "model": conditions.model,
        "soc": conditions.soc,
        "abi": conditions.abi,
        "os_build": conditions.os_build,
        "cpu_features": list(conditions.cpu_features),
        "cores": [{"index": core.index, "max_khz": core.max_khz} for core in conditions.cores],
        "governors": sorted({core.governor for core in conditions.cores if core.governor}),
        "memory_total": conditions.memory_total,
    }


def conditions_record(conditions: Conditions) -> Row:
    """What changes."""
    battery = conditions.battery
    return {
        "clocks_khz": [core.khz for core in conditions.cores],
        "thermal": conditions.thermal,
        "thermal_status": conditions.thermal_status,
        "battery": None if battery is None else vars(battery),
        "memory_available": conditions.memory_available,
        "load": conditions.load,
    }


def artifact_record(artifact: Artifact, name: str, bundle: Bundle) -> Row:
    """Name, hash, size and cache plan. bytes: of the program; cache_bytes: of all it keeps between steps."""
    program = f"{bundle.remote_artifact(artifact.folder)}/{artifact.program.name}"  # a file, or a package's folder
    cache = artifact.manifest["kv_cache"]
    stored = artifact.manifest.get("core_ml_states", cache)  # the form in which the program keeps it
    return {
        "name": name,
        "id": bundle.artifacts[artifact.folder.resolve()],
        "bytes": sum(file.size for path, file in bundle.files.items() if f"{path}/".startswith(f"{program}/")),
        "model": artifact.manifest["model"]["name"],
        "random_weights": artifact.manifest["model"]["random_weights"],
        "quantize": artifact.manifest.get("quantize") or artifact.manifest.get("weights"),
        "policy": cache["policy"],
        "context": cache["context"],
        "cache_bytes": stored["bytes_allocated"],
        "fp16_bytes": cache["fp16_bytes"],
        "bits_per_value": stored["bits_per_value"],
        "tier_bits": [tier["bits"] for tier in cache["tiers"]],
        "capacities": [tier["capacity"] for tier in cache["tiers"]],
    }


def artifact_names(folders: Sequence[Path]) -> dict[Path, str]:
    """A short name for each: its folder's, with as many folders above it as make it unique. Raises UserError for a
    folder given twice."""
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError("an artifact is given twice: name each folder once")
    for depth in range(1, 2 + max(len(folder.resolve().parts) for folder in folders)):
        names = {folder: "/".join(folder.resolve().parts[-depth:]) for folder in folders}
        if len(set(names.values())) == len(folders):
            break
    return names
