"""Every kernel has a case, and those that skip rounding need none."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from device_tests.coreml.evaluator import (
    test_compression,
    test_elementwise,
    test_gather_scatter,
    test_linear,
    test_reduction,
    test_shaping,
)
from device_tests.coreml.evaluator.registry import KERNELS
from device_tests.coreml.evaluator.testing import Case, run_cases

MODULES = (test_compression, test_elementwise, test_gather_scatter, test_linear, test_reduction, test_shaping)
CASES: list[Case] = [case for module in MODULES for case in module.CASES]


def test_every_kernel_is_compared_with_a_reference() -> None:
    assert KERNELS.keys() - {case.op for case in [*CASES, *test_compression.CASES_IOS16]} == set()


def test_kernels_marked_exact_return_halves_for_halves(tmp_path: Path) -> None:
    """With rounding off, a result that is not a half would show."""
    cases = {case.name: case for case in CASES if KERNELS[case.op].exact}
    outputs = run_cases(list(cases.values()), tmp_path, precision="fp32")
    floats = {name: array for name, arrays in outputs.items() for array in arrays if array.dtype == np.float32}
    assert len(floats) > 50
    for name, array in floats.items():
        np.testing.assert_array_equal(array, array.astype(np.float16).astype(np.float32), err_msg=name)
