"""Slices and changes of shape against value inference, with negative indices, strides and masks."""

from __future__ import annotations

import numpy as np
import pytest

from device_tests.coreml.evaluator.testing import Case, check_case

X = np.arange(60, dtype=np.float16).reshape(3, 4, 5)
I32 = np.int32
IDS = np.array([[0, 2], [-1, 5]], I32)


def i32(*values: int) -> np.ndarray:
    return np.array(values, I32)


def _slice(name: str, begin: list[int], end: list[int], **more: list) -> list[Case]:
    """Read a slice, with bounds that are constant and bounds that are inputs."""
    bounds = {"begin": i32(*begin), "end": i32(*end)}
    return [
        Case(f"slice_{name}", "slice_by_index", {"x": X}, bounds | more),
        Case(f"slice_{name}_dynamic", "slice_by_index", {"x": X} | bounds, more, expected=lambda **v: _sliced(**v)),
    ]


def _sliced(x, begin, end, stride=None, begin_mask=None, end_mask=None, squeeze_mask=None):  # type: ignore[no-untyped-def]
    return x[_index(begin, end, stride, begin_mask, end_mask, squeeze_mask)]


def _index(begin, end, stride=None, begin_mask=None, end_mask=None, squeeze_mask=None):  # type: ignore[no-untyped-def]
    """numpy's index for the operation's inputs, from the definition."""
    index: list[int | slice] = []
    for d in range(len(begin)):
        if squeeze_mask and squeeze_mask[d]:
            index.append(int(begin[d]))
            continue
        start = None if begin_mask and begin_mask[d] else int(begin[d])
        stop = None if end_mask and end_mask[d] else int(end[d])
        index.append(slice(start, stop, stride[d] if stride else 1))
    return tuple(index)


def _updated(x, update, **index):  # type: ignore[no-untyped-def]
    x = x.copy()
    x[_index(**index)] = update
    return x


CASES = [
    *_slice("plain", [0, 1, 2], [2, 3, 5]),
    *_slice("negative", [-2, -3, -4], [3, -1, -1]),
    *_slice("masks", [7, 1, 7], [2, 7, 7], begin_mask=[True, False, True], end_mask=[False, True, True]),
    *_slice("squeeze", [1, -1, 0], [0, 0, 5], squeeze_mask=[True, True, False]),
    *_slice("stride", [0, 0, 1], [3, 4, 5], stride=[2, 3, 2]),
    *_slice("backwards", [2, 3, -1], [0, 0, -4], stride=[-1, -2, -1], end_mask=[True, False, False]),
    *_slice("backwards_all", [0, 0, 0], [0, 0, 0], stride=[-1, 1, -2], begin_mask=[True] * 3, end_mask=[True] * 3),
    Case("slice_int32", "slice_by_index", {"x": IDS}, {"begin": i32(0, 1), "end": i32(2, 2)}),
    Case("size", "slice_by_size", {"x": X}, {"begin": i32(1, -3, 0), "size": i32(1, 2, -1)}),
    Case(
        "update", "slice_update", {"x": X, "update": X[:1, :2, :3] + 100}, {"begin": i32(1, 1, 1), "end": i32(2, 3, 4)}
    ),
    Case(
        "update_dynamic",
        "slice_update",
        {"x": X, "update": X[:, :1] + 100, "begin": i32(0, 3, 0), "end": i32(0, 4, 0)},
        {"begin_mask": [True, False, True], "end_mask": [True, False, True]},
        _updated,
    ),
    Case(
        "update_squeeze",
        "slice_update",
        {"x": X, "update": X[0, :2] + 100, "begin": i32(-1, 0, 0), "end": i32(0, 4, 5)},
        {"squeeze_mask": [True, False, False], "stride": [1, 2, 1]},
        _updated,
    ),
    Case(
        "update_backwards",
        "slice_update",
        {"x": X, "update": X[:2] + 100, "begin": i32(2, 0, 0), "end": i32(0, 4, 5)},
        {"stride": [-1, 1, 1]},
        _updated,
    ),
    Case("reshape", "reshape", {"x": X}, {"shape": i32(5, -1, 2)}),
    Case("reshape_zero", "reshape", {"x": X}, {"shape": i32(2, -1, 0)}),
    Case("reshape_zero_beyond", "reshape", {"x": X[0]}, {"shape": i32(1, 0, -1, 0)}),
    Case("transpose", "transpose", {"x": X}, {"perm": [2, 0, -2]}),
    Case("expand_dims", "expand_dims", {"x": X[0]}, {"axes": [0, -1, 2]}),
    Case("squeeze", "squeeze", {"x": X[:1, :, :1]}, {"axes": [0, -1]}),
    Case("squeeze_all", "squeeze", {"x": X[:1, :, :1]}),
    Case("tile", "tile", {"x": X}, {"reps": i32(1, 2, 3)}),
    Case(
        "concat",
        "concat",
        {"values": [X, X[:, :1], X + 1]},
        {"axis": -2},
        lambda values, axis: np.concatenate(values, axis),
    ),
    Case(
        "concat_interleave",
        "concat",
        {"values": [X, X + 100]},
        {"axis": 1, "interleave": True},
        lambda values, **_: np.stack(values, 2).reshape(3, 8, 5),
    ),
    Case("stack", "stack", {"values": [X, X + 1]}, {"axis": 1}),
    Case("stack_last", "stack", {"values": [IDS, IDS]}, {"axis": -1}),
    Case("split", "split", {"x": X}, {"axis": 1, "num_splits": 2}),
    Case("split_sizes", "split", {"x": X}, {"axis": -1, "split_sizes": [1, 3, 1]}),
    Case("reverse", "reverse", {"x": X}, {"axes": [0, -1]}),
    Case("reverse_all", "reverse", {"x": X}),
    Case("pad", "pad", {"x": X}, {"pad": i32(1, 2, 0, 3), "constant_val": np.float16(-1.5)}),
    Case("pad_reflect", "pad", {"x": X}, {"pad": i32(0, 0, 2, 1, 1, 3), "mode": "reflect"}),
    Case("pad_replicate", "pad", {"x": X}, {"pad": i32(2, 1), "mode": "replicate"}),
    Case("band_part", "band_part", {"x": X}, {"lower": 1, "upper": 2}),
    Case("band_part_upper", "band_part", {"x": X}, {"lower": 0, "upper": -1}),
    Case("shape", "shape", {"x": X}),
    Case("fill", "fill", {"shape": i32(2, 3)}, {"value": np.float16(0.1)}, lambda shape, value: np.full(shape, value)),
    Case("fill_like", "fill_like", {"ref_tensor": X}, {"value": np.int32(7)}),
    Case(
        "range_int32",
        "range_1d",
        {"end": I32(11), "start": I32(1), "step": I32(3)},
        expected=lambda end, start, step: np.arange(start, end, step),
    ),
    Case(
        "range_fp16",
        "range_1d",
        {"end": np.float16(1), "start": np.float16(0), "step": np.float16(0.25)},
        expected=lambda end, start, step: np.arange(start, end, step),
    ),
    Case(
        "one_hot",
        "one_hot",
        {"indices": IDS},
        {"one_hot_vector_size": 4, "axis": 1, "on_value": np.float16(2), "off_value": np.float16(-1)},
        lambda indices, **_: np.where(indices[:, None] == np.arange(4)[:, None], 2, -1),
    ),
    Case(
        "one_hot_default",
        "one_hot",
        {"indices": IDS[0]},
        {"one_hot_vector_size": 3},
        lambda indices, **_: np.eye(3)[indices],
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_matches_reference(case: Case, results: dict[str, list[np.ndarray]]) -> None:
    check_case(case, results)
