"""Elementwise operations against coremltools' value inference, corner cases included."""

from __future__ import annotations

import numpy as np
import pytest

from device_tests.coreml.evaluator.testing import Case, check_case

F16, I32 = np.float16, np.int32
INF, NAN = np.inf, np.nan
RNG = np.random.default_rng(0)
# Ordinary values, halves that round, overflow to infinity, subnormals, signed zeros and non-numbers.
X = np.array([1.5, -2.25, 0.1, 1000.5, 60000, -60000, 6e-8, -0.0, INF, NAN, 2.5, -3.5], F16)
Y = np.array([3.0, 0.7, -0.3, 999.5, 60000, 3, 2, 5.0, 2.0, 1.0, 2.5, -0.5], F16)
REAL = RNG.normal(size=(3, 4)).astype(F16)
UNIT = RNG.uniform(-0.95, 0.95, size=(3, 4)).astype(F16)
POSITIVE = RNG.uniform(0.01, 30, size=(3, 4)).astype(F16)
A, B = np.array([7, -7, 7, -7, 0, 6], I32), np.array([2, 2, -2, -2, 3, 3], I32)
P, Q = np.array([True, True, False, False]), np.array([True, False, True, False])

CASES = [
    *(Case(f"{op}_fp16", op, {"x": X, "y": Y}) for op in ("add", "sub", "mul", "real_div", "maximum", "minimum")),
    *(Case(f"{op}_int32", op, {"x": A, "y": B}) for op in ("add", "sub", "mul", "floor_div", "mod", "maximum")),
    *(Case(f"{op}_fp16", op, {"x": REAL, "y": POSITIVE}, ulps=1) for op in ("floor_div", "mod")),
    *(
        Case(f"{op}_fp16", op, {"x": X, "y": Y[::-1].copy()})
        for op in ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal")
    ),
    Case("equal_int32", "equal", {"x": A, "y": B}),
    *(Case(op, op, {"x": P, "y": Q}) for op in ("logical_and", "logical_or", "logical_xor")),
    Case("logical_not", "logical_not", {"x": P}),
    Case("add_broadcast", "add", {"x": REAL, "y": REAL[:, :1]}),
    Case("mul_scalar", "mul", {"x": X}, {"y": F16(0.1)}),
    Case("int32_wraps", "add", {"x": np.array([2**31 - 1], I32), "y": np.array([1], I32)}),
    Case("pow", "pow", {"x": POSITIVE, "y": REAL}, ulps=1),
    *(Case(op, op, {"x": X}) for op in ("abs", "ceil", "floor", "round", "sign")),
    Case("abs_int32", "abs", {"x": A}),
    *(Case(op, op, {"x": REAL}, ulps=1) for op in ("atan", "cos", "cosh", "erf", "exp", "exp2", "sin", "sinh", "tan")),
    *(Case(op, op, {"x": UNIT}, ulps=1) for op in ("acos", "asin", "atanh")),
    Case("exp_overflow", "exp", {"x": np.array([11.0, 11.5, -20], F16)}, ulps=1),
    *(Case(op, op, {"x": X}) for op in ("sqrt", "square")),
    Case("inverse", "inverse", {"x": POSITIVE}, {"epsilon": F16(1e-4)}, ulps=1),
    Case("log", "log", {"x": POSITIVE}, ulps=1),
    Case("log_epsilon", "log", {"x": POSITIVE}, {"epsilon": F16(0.5)}, ulps=1),
    Case("rsqrt", "rsqrt", {"x": POSITIVE}, {"epsilon": F16(1e-3)}, ulps=1),
    Case("clip", "clip", {"x": X}, {"alpha": F16(-1), "beta": F16(2)}),
    Case("threshold", "threshold", {"x": REAL}, {"alpha": F16(0.3)}),
    Case("select", "select", {"cond": np.array([[True], [False], [True]]), "a": REAL, "b": POSITIVE}),
    Case("identity", "identity", {"x": REAL}),
    Case("cast_towards_zero", "cast", {"x": np.array([1.9, -1.9, 0.5, -0.0, 2047.5], F16)}, {"dtype": "int32"}),
    Case("cast_rounds", "cast", {"x": np.array([2049, 2051, 65519, 65520, -70000], I32)}, {"dtype": "fp16"}),
    Case("cast_fp32", "cast", {"x": np.array([0.1, 1e-8, 1e5], np.float32)}, {"dtype": "fp16"}),
    Case("cast_bool", "cast", {"x": np.array([0.0, -0.0, 6e-8, NAN, -1], F16)}, {"dtype": "bool"}),
    *(Case(f"cast_{t}", "cast", {"x": np.array([-1, 300, 70000, 5], I32)}, {"dtype": t}) for t in ("uint16", "int16")),
    *(Case(f"cast_{t}", "cast", {"x": np.array([-1, 300, 127, 200], I32)}, {"dtype": t}) for t in ("uint8", "int8")),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_matches_value_inference(case: Case, results: dict[str, list[np.ndarray]]) -> None:
    check_case(case, results)
