"""Slices: reading parts of a tensor and writing parts of a copy, with numpy's rules for indices and masks."""

from __future__ import annotations

import torch
from torch import Tensor

from device_tests.coreml.evaluator.registry import kernel


@kernel("slice_by_index", exact=True)
def slice_by_index(
    x: Tensor,
    begin: list[int],
    end: list[int],
    stride: list[int] | None = None,
    begin_mask: list[bool] | None = None,
    end_mask: list[bool] | None = None,
    squeeze_mask: list[bool] | None = None,
) -> Tensor:
    """x[begin:end:stride] in every dimension; a masked bound is the far end, a squeezed dimension is x[begin]."""
    index, flipped = _index(x.shape, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    part = x[index]
    return part.flip(flipped) if flipped else part


@kernel("slice_update", exact=True)
def slice_update(
    x: Tensor,
    update: Tensor,
    begin: list[int],
    end: list[int],
    stride: list[int] | None = None,
    begin_mask: list[bool] | None = None,
    end_mask: list[bool] | None = None,
    squeeze_mask: list[bool] | None = None,
) -> Tensor:
    """A copy of x with `update` in place of the slice that `slice_by_index` would read."""
    index, flipped = _index(x.shape, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    result = x.clone()
    target = result[index]
    if update.numel() != target.numel():
        raise IndexError(
            f"slice_update of {list(x.shape)} from {begin} to {end}: {list(target.shape)} elements to write,"
            f" {list(update.shape)} given"
        )
    shaped = update.reshape(target.shape)
    result[index] = shaped.flip(flipped) if flipped else shaped
    return result


@kernel("slice_by_size", exact=True)
def slice_by_size(x: Tensor, begin: list[int], size: list[int]) -> Tensor:
    """`size` elements from `begin` in every dimension; size -1 is all that follow, a negative begin counts back."""
    starts = [start + length if start < 0 else start for start, length in zip(begin, x.shape, strict=True)]
    stops = [None if count == -1 else start + count for start, count in zip(starts, size, strict=True)]
    return x[tuple(slice(start, stop) for start, stop in zip(starts, stops, strict=True))]


def _index(
    shape: torch.Size,
    begin: list[int],
    end: list[int],
    stride: list[int] | None,
    begin_mask: list[bool] | None,
    end_mask: list[bool] | None,
    squeeze_mask: list[bool] | None,
) -> tuple[tuple[int | slice, ...], list[int]]:
    """An index with positive strides only, which is all torch takes, and the dimensions of its result to reverse."""
    index: list[int | slice] = []
    flipped, kept = [], 0
    for dim, size in enumerate(shape):
        if squeeze_mask and squeeze_mask[dim]:
            index.append(0 if begin_mask and begin_mask[dim] else begin[dim])
            continue
        step = stride[dim] if stride else 1
        start = None if begin_mask and begin_mask[dim] else begin[dim]
        stop = None if end_mask and end_mask[dim] else end[dim]
        positions = range(*slice(start, stop, step).indices(size))
        if step < 0:
            flipped.append(kept)
            positions = positions[::-1]
        index.append(slice(positions[0], positions[-1] + 1, positions.step) if len(positions) else slice(0, 0))
        kept += 1
    return tuple(index), flipped
