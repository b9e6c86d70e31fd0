"""`results`: the CASES of a test module, evaluated as one saved program."""

from __future__ import annotations

import numpy as np
import pytest

from device_tests.coreml.evaluator.testing import run_cases


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[np.ndarray]]:
    return run_cases(request.module.CASES, tmp_path_factory.mktemp("cases"))
