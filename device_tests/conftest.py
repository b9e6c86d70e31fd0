"""Small artifacts for tests that are about devices, not about a model; what tests over adb start from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from adakv_model.runtime.artifact import Artifact
from device_tests.devices.emulated.testing import adb_server, build_probe
from device_tests.exporting import made_once
from scripts.make_tiny_artifact import main as make_tiny_artifact


@pytest.fixture(scope="session")
def tiny_artifact(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Artifact]:
    """tiny_artifact(quantize="none", policy="fp16"): two layers, random weights, made once a test run."""
    made: dict[tuple[tuple[str, str], ...], Artifact] = {}

    def make(**options: str) -> Artifact:
        key = tuple(sorted(options.items()))
        if key not in made:
            choices = "_".join(("tiny", *(f"{option}={value}" for option, value in key)))
            name = f"{choices}/{'-'.join(options.values()) or 'default'}"
            made[key] = Artifact(
                made_once(tmp_path_factory, name, lambda folder: make_tiny_artifact(folder, **options))
            )
        return made[key]

    return make


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A private adb server, which this process's adb commands use; its port."""
    with adb_server(tmp_path_factory.mktemp("adb")) as port:
        yield port


@pytest.fixture(scope="module")
def program(server: int, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small arm64 program in place of the runner: emulated/probe.c."""
    return build_probe(tmp_path_factory.mktemp("probe"))
