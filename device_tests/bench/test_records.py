"""What results say of an artifact, for a Core ML one: its program is a folder, its cache has a form of its own."""

from __future__ import annotations

import json
from pathlib import Path

from adakv_model.runtime.artifact import Artifact
from device_tests.bench.records import artifact_record
from device_tests.coreml.swift_fixtures import manifest
from device_tests.devices.apple import core_ml_bundle
from device_tests.devices.bundle import Bundle


def test_a_core_ml_artifact(tmp_path: Path) -> None:
    files: dict[str, dict] = {"Small.mlpackage/Manifest.json": {"bytes": 2, "sha256": "0" * 64}}
    described = {**manifest(), "weights": "int4", "command": ["export"], "versions": {"adakv": "1"}, "files": files}
    described["model"]["random_weights"] = True
    (tmp_path / "Small.mlpackage" / "Data").mkdir(parents=True)
    (tmp_path / "Small.mlpackage" / "Manifest.json").write_text("{}", encoding="utf-8")
    (tmp_path / "Small.mlpackage" / "Data" / "weights").write_text("12345", encoding="utf-8")
    (tmp_path / "manifest.json").write_text(json.dumps(described), encoding="utf-8")
    record = artifact_record(Artifact(tmp_path), "small", core_ml_bundle(Bundle({}, ()), [tmp_path]))
    assert record["bytes"] == 7
    assert record["quantize"] == "int4"
    assert record["cache_bytes"] == described["core_ml_states"]["bytes_allocated"]
    assert record["cache_bytes"] != described["kv_cache"]["bytes_allocated"]
