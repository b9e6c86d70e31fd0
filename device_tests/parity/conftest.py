"""Artifacts under test: the one given with --artifact, else two exported here (see `artifact`)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from adakv_model.checkpoints.load import Checkpoint
from adakv_model.errors import UserError
from adakv_model.runtime.artifact import Artifact, HostModel
from device_tests.exporting import export_once
from device_tests.parity.eager import checkpoint_of

HERE = Path(__file__).parent
TEXT = (HERE / "text.txt").read_text(encoding="utf-8")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "artifact" in metafunc.fixturenames:
        given = metafunc.config.getoption("--artifact")
        metafunc.parametrize("artifact", [given] if given else ["float", "default"], indirect=True, scope="session")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With --device, what this machine alone is asked is left out."""
    if not config.getoption("--device"):
        return
    others = [i for i in items if i.path.parent == HERE and i.path.name != "test_device.py"]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in others]


@pytest.fixture(scope="session")
def export_artifact(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Artifact]:
    """export_artifact("--kv", "fp16", ...): runs export.py once for each set of options."""
    return lambda *options: Artifact(export_once(tmp_path_factory, options))


@pytest.fixture(scope="session")
def artifact(request: pytest.FixtureRequest, export_artifact: Callable[..., Artifact]) -> Artifact:
    """float: float weights, every feature, and a context that the text fills, so tiers fill and spill. default: as
    users get it, but for the logits of every token."""
    if request.param == "float":
        options = ("--quantize", "none", "--embedding", "none", "--context", "600")
        return export_artifact(*options, "--features", "all")
    if request.param == "default":
        return export_artifact("--logits", "all")
    given = Artifact(Path(request.param))
    try:
        if not request.config.getoption("--device"):
            given.require_all_logits()
    except UserError as error:
        pytest.exit(f"error: {error}", returncode=2)
    return given


@pytest.fixture(scope="session")
def checkpoint(artifact: Artifact) -> Checkpoint:
    return checkpoint_of(artifact)


@pytest.fixture(scope="session")
def model(artifact: Artifact) -> HostModel:
    """The loaded program; every test starts by resetting it."""
    torch.set_num_threads(1)  # the eager side is many small operations
    return artifact.load()


@pytest.fixture(scope="session")
def tokens(artifact: Artifact) -> list[int]:
    """Real text: as much as the context holds, up to 640 tokens."""
    ids = artifact.codec.encode(TEXT)[: min(640, artifact.plan.context)]
    assert len(ids) >= min(512, artifact.plan.context), "the parity text is too short"
    return ids
