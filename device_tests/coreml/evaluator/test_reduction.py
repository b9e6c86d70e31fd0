"""Reductions, sums and sorts against value inference."""

from __future__ import annotations

import numpy as np
import pytest

from device_tests.coreml.evaluator.testing import Case, check_case

RNG = np.random.default_rng(2)
X = RNG.normal(size=(2, 3, 4)).astype(np.float16)
POSITIVE = RNG.uniform(0.5, 2, size=(2, 3, 4)).astype(np.float16)
COUNTS = RNG.integers(-9, 9, size=(2, 3, 4)).astype(np.int32)
MANY = np.full((1, 4096), 1.001, np.float16)  # a running sum in halves would stop at 2048
DISTINCT = RNG.permutation(24).reshape(2, 3, 4).astype(np.float16)

CASES = [
    *(
        Case(f"{op}_{'keep' if keep else 'drop'}", op, {"x": X}, {"axes": [-1, 0], "keep_dims": keep}, ulps=1)
        for op in ("reduce_sum", "reduce_mean", "reduce_max", "reduce_min", "reduce_prod", "reduce_l1_norm")
        for keep in (True, False)
    ),
    *(
        Case(op, op, {"x": POSITIVE}, {"axes": [1], "keep_dims": True}, ulps=1)
        for op in ("reduce_l2_norm", "reduce_sum_square", "reduce_log_sum", "reduce_log_sum_exp")
    ),
    Case("reduce_all", "reduce_sum", {"x": X}, ulps=1),
    Case("reduce_prod_all", "reduce_prod", {"x": X}, ulps=1),
    Case("reduce_sum_int32", "reduce_sum", {"x": COUNTS}, {"axes": [2]}),
    Case("reduce_max_int32", "reduce_max", {"x": COUNTS}, {"axes": [2]}),
    Case("reduce_sum_long", "reduce_sum", {"x": MANY}, {"axes": [-1]}, ulps=1),
    Case("reduce_sum_overflow", "reduce_sum", {"x": np.full((1, 2), 60000, np.float16)}, {"axes": [-1]}),
    Case("reduce_argmax", "reduce_argmax", {"x": DISTINCT}),
    Case("reduce_argmax_axis", "reduce_argmax", {"x": DISTINCT}, {"axis": 1, "keep_dims": True}),
    Case("reduce_argmax_tie", "reduce_argmax", {"x": np.array([1, 3, 3, 0], np.float16)}),
    Case("reduce_argmin", "reduce_argmin", {"x": DISTINCT}, {"axis": 0, "output_dtype": "uint16"}),
    Case("cumsum", "cumsum", {"x": X}, {"axis": 1}, ulps=1),
    Case("cumsum_int32_reverse", "cumsum", {"x": COUNTS}, {"axis": 2, "reverse": True}),
    Case(
        "cumsum_exclusive",
        "cumsum",
        {"x": COUNTS},
        {"axis": -1, "exclusive": True, "reverse": True},
        lambda x, **_: np.cumsum(x[..., ::-1], -1)[..., ::-1] - x,
    ),
    Case("argsort", "argsort", {"x": DISTINCT}, {"axis": 1, "ascending": True}),
    Case("argsort_descending", "argsort", {"x": DISTINCT}),
    Case("topk", "topk", {"x": DISTINCT}, {"k": 2, "axis": -1}),
    Case("topk_ascending", "topk", {"x": DISTINCT}, {"k": 2, "axis": 0, "ascending": True}),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_matches_value_inference(case: Case, results: dict[str, list[np.ndarray]]) -> None:
    check_case(case, results)
