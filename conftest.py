"""Fixtures shared by all tests."""

from pathlib import Path

import pytest

from adakv_model.checkpoints.load import Checkpoint, load_checkpoint
from adakv_model.checkpoints.sources import fetch_bundled_file
from adakv_model.config import DEFAULT_MODEL, get_model
from adakv_model.digest import default_cache_dir


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--artifact", help="device_tests: test this artifact folder instead of exporting some")
    parser.addoption("--device", help="device_tests/parity: only the tests of a device: host, qemu, adb:SERIAL, ...")


@pytest.fixture(scope="session")
def default_checkpoint() -> Checkpoint:
    """The real SmolLM2-135M-Instruct weights, downloaded once into the cache. Do not modify them."""
    return load_checkpoint()


@pytest.fixture(scope="session")
def default_gguf() -> Path:
    """The file from which `default_checkpoint` is read."""
    bundled = get_model(DEFAULT_MODEL).bundled
    assert bundled is not None
    return fetch_bundled_file(bundled, default_cache_dir())
