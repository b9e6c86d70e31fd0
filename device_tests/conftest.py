"""Small artifacts for tests that are about devices, not about a model."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from adakv_model.runtime.artifact import Artifact
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
