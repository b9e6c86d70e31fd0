"""Gathers and scatters against value inference and against loops that follow the definitions."""

from __future__ import annotations

import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import types

from device_tests.coreml.evaluator.testing import Case, check_case, save_program

RNG = np.random.default_rng(3)
X = RNG.normal(size=(3, 4, 5)).astype(np.float16)
I32 = np.int32
COMBINE: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "max": np.maximum,
    "min": np.minimum,
    "update": lambda old, new: new,
}


def ids(shape: tuple[int, ...], size: int, *, dtype: type = I32) -> np.ndarray:
    return RNG.integers(0, size, size=shape).astype(dtype)


def gather_nd(x: np.ndarray, indices: np.ndarray, batch_dims: int = 0) -> np.ndarray:
    batch = np.ndindex(*indices.shape[:batch_dims])
    rows = [np.array([x[b][tuple(i)] for i in indices[b].reshape(-1, indices.shape[-1])]) for b in batch]
    return np.array(rows).reshape(*indices.shape[:-1], *x.shape[batch_dims + indices.shape[-1] :])


def scatter(data: np.ndarray, indices: np.ndarray, updates: np.ndarray, axis: int, mode: str) -> np.ndarray:
    result = np.moveaxis(data.copy(), axis, 0)
    for index, update in zip(indices, np.moveaxis(updates, axis, 0), strict=True):
        result[index] = COMBINE[mode](result[index], update)
    return np.moveaxis(result, 0, axis)


def scatter_along_axis(data: np.ndarray, indices: np.ndarray, updates: np.ndarray, axis: int, mode: str) -> np.ndarray:
    result = data.copy()
    for place in np.ndindex(*indices.shape):
        at = list(place)
        at[axis] = indices[place]
        result[tuple(at)] = COMBINE[mode](result[tuple(at)], updates[place])
    return result


def scatter_nd(data: np.ndarray, indices: np.ndarray, updates: np.ndarray, mode: str) -> np.ndarray:
    result = data.copy()
    for place in np.ndindex(*indices.shape[:-1]):
        at = tuple(indices[place])
        result[at] = COMBINE[mode](result[at], updates[place])
    return result


UPDATES = RNG.uniform(0.5, 2, size=(3, 2, 5)).astype(np.float16)
TWICE = np.array([1, 1], I32)  # an index that occurs twice; for "update" and "div" one that does not
ONCE = np.array([3, 0], I32)

CASES = [
    Case("gather", "gather", {"x": X, "indices": ids((2, 3), 3)}),
    Case("gather_axis", "gather", {"x": X, "indices": ids((2, 2), 5)}, {"axis": -1}),
    Case("gather_negative", "gather", {"x": X, "indices": np.array([-1, -4, 2], I32)}, {"axis": 1}),
    Case("gather_scalar", "gather", {"x": X, "indices": I32(2)}, {"axis": 1}, lambda x, indices, axis: x[:, indices]),
    Case("gather_batch", "gather", {"x": X, "indices": ids((3, 2), 5)}, {"axis": 2, "batch_dims": 1}),
    Case("gather_batch_2", "gather", {"x": X, "indices": ids((3, 4, 2, 2), 5)}, {"axis": 2, "batch_dims": 2}),
    Case("gather_uint16", "gather", {"x": X, "indices": ids((2,), 4, dtype=np.uint16)}, {"axis": 1}),
    Case("along", "gather_along_axis", {"x": X, "indices": ids((3, 2, 5), 4)}, {"axis": 1}),
    Case("along_negative", "gather_along_axis", {"x": X, "indices": ids((3, 4, 2), 5) - I32(5)}, {"axis": -1}),
    Case("nd", "gather_nd", {"x": X, "indices": ids((2, 3, 2), 3)}, expected=gather_nd),
    Case("nd_batch", "gather_nd", {"x": X, "indices": ids((3, 2, 1), 4)}, {"batch_dims": 1}, gather_nd),
    *(
        Case(
            f"scatter_{mode}",
            "scatter",
            {"data": X, "indices": ONCE if mode in ("update", "div") else TWICE, "updates": UPDATES},
            {"axis": 1, "mode": mode},
            scatter,
            ulps=1,
        )
        for mode in COMBINE
    ),
    *(
        Case(
            f"along_{mode}",
            "scatter_along_axis",
            {"data": X, "indices": np.broadcast_to(ONCE[:, None], (3, 2, 5)).copy(), "updates": UPDATES},
            {"axis": -2, "mode": mode},
            scatter_along_axis,
            ulps=1,
        )
        for mode in ("update", "add", "mul")
    ),
    *(
        Case(
            f"nd_{mode}",
            "scatter_nd",
            {"data": X, "indices": np.array([[2, 3], [0, -1]], I32), "updates": UPDATES[0]},
            {"mode": mode},
            scatter_nd,
            ulps=1,
        )
        for mode in ("update", "add", "max")
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_matches_reference(case: Case, results: dict[str, list[np.ndarray]]) -> None:
    check_case(case, results)


def test_an_index_outside_is_an_error_that_names_the_operation(tmp_path: Path) -> None:
    def build(given: dict[str, Any]) -> list[Any]:
        return [mb.gather(x=given["x"], indices=given["at"], axis=0, name="picked")]

    inputs = {"x": mb.placeholder((3, 2), dtype=types.fp16), "at": mb.placeholder((1,), dtype=types.int32)}
    program = save_program(tmp_path / "out.mlpackage", inputs, build).function()
    with pytest.raises(IndexError, match="index 3 to 3 in a dimension of 3") as caught:
        program.run({"x": np.zeros((3, 2)), "at": np.array([3])})
    assert "gather 'picked'" in "".join(caught.value.__notes__)
