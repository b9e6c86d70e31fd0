"""Small artifacts for tests that are about devices, not about a model."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from adakv_model.runtime.artifact import Artifact
from scripts.make_tiny_artifact import main as make_tiny_artifact


@pytest.fixture(scope="session")
def tiny_artifact(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Artifact]:
    """tiny_artifact(quantize="none", policy="fp16"): two layers, random weights, made once a session."""
    made: dict[tuple[tuple[str, str], ...], Artifact] = {}

    def make(**options: str) -> Artifact:
        key = tuple(sorted(options.items()))
        if key not in made:
            folder = tmp_path_factory.mktemp("tiny") / ("-".join(options.values()) or "default")
            make_tiny_artifact(folder, **options)
            made[key] = Artifact(folder)
        return made[key]

    return make
