"""Operations that move, join, repeat or make values without computing with them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from device_tests.coreml.evaluator.registry import kernel


@kernel("reshape", exact=True)
def reshape(x: Tensor, shape: list[int]) -> Tensor:
    """-1 takes what is left; 0 takes x's dimension at the same place counted from the right (1 beyond x's rank)."""
    offset = x.dim() - len(shape)
    sizes = [
        size if size != 0 else (x.shape[dim + offset] if dim + offset >= 0 else 1) for dim, size in enumerate(shape)
    ]
    return x.reshape(sizes)


@kernel("transpose", exact=True)
def transpose(x: Tensor, perm: list[int]) -> Tensor:
    return x.permute(perm)


@kernel("expand_dims", exact=True)
def expand_dims(x: Tensor, axes: list[int]) -> Tensor:
    """New dimensions of size 1 at `axes` of the result."""
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


@kernel("squeeze", exact=True)
def squeeze(x: Tensor, axes: list[int] | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(axes)


@kernel("tile", exact=True)
def tile(x: Tensor, reps: list[int]) -> Tensor:
    return x.repeat(reps)


@kernel("concat", exact=True)
def concat(values: list[Tensor], axis: int, interleave: bool = False) -> Tensor:
    if values[0].dim() == 0:
        return torch.stack(values)
    if interleave:
        dim = axis % values[0].dim()
        return torch.stack(values, dim + 1).flatten(dim, dim + 1)
    return torch.cat(values, axis)


@kernel("stack", exact=True)
def stack(values: list[Tensor], axis: int) -> Tensor:
    return torch.stack(values, axis)


@kernel("split", exact=True)
def split(x: Tensor, axis: int, num_splits: int | None = None, split_sizes: list[int] | None = None) -> list[Tensor]:
    if split_sizes is None:
        assert num_splits is not None, "split has sizes or a number of parts"
        split_sizes = [x.shape[axis] // num_splits] * num_splits
    return list(x.split(split_sizes, axis))


@kernel("reverse", exact=True)
def reverse(x: Tensor, axes: list[int] | None = None) -> Tensor:
    return x.flip(axes if axes is not None else list(range(x.dim())))


@kernel("pad", exact=True)
def pad(x: Tensor, pad: list[int], mode: str = "constant", constant_val: Tensor | None = None) -> Tensor:
    """pad: amounts before and after each of the last len(pad) / 2 dimensions."""
    amounts = [amount for dim in range(len(pad) - 2, -1, -2) for amount in pad[dim : dim + 2]]
    if mode == "constant":
        return F.pad(x, amounts, value=0 if constant_val is None else constant_val.item())
    for dim in range(len(pad) // 2):  # torch reflects only the last dimensions of some ranks
        before, after = pad[2 * dim], pad[2 * dim + 1]
        axis = x.dim() - len(pad) // 2 + dim
        x = x.index_select(axis, _mirrored(x.shape[axis], before, after, mode))
    return x


def _mirrored(size: int, before: int, after: int, mode: str) -> Tensor:
    positions = torch.arange(-before, size + after)
    if mode == "replicate":
        return positions.clamp(0, size - 1)
    positions = positions.abs()
    return torch.where(positions >= size, 2 * (size - 1) - positions, positions)


@kernel("band_part", exact=True)
def band_part(x: Tensor, lower: int = -1, upper: int = -1) -> Tensor:
    """x with zeros below `lower` and above `upper` diagonals; a negative number keeps that side."""
    x = x if lower < 0 else x.triu(-lower)
    return x if upper < 0 else x.tril(upper)


@kernel("shape", exact=True)
def shape(x: Tensor) -> Tensor:
    return torch.tensor(x.shape, dtype=torch.int32)


@kernel("fill", exact=True)
def fill(shape: list[int], value: Tensor | None = None) -> Tensor:
    return torch.zeros(shape) if value is None else value.expand(shape)


@kernel("fill_like", exact=True)
def fill_like(ref_tensor: Tensor, value: Tensor | None = None) -> Tensor:
    return fill(list(ref_tensor.shape), value)


@kernel("range_1d")
def range_1d(end: Tensor, start: Tensor, step: Tensor) -> Tensor:
    """start, start + step, ... below end; rounded once in half precision, not at each step."""
    count = max(0, math.ceil((end.item() - start.item()) / step.item()))
    return start + step * torch.arange(count, dtype=start.dtype)


@kernel("one_hot", exact=True)
def one_hot(
    indices: Tensor,
    one_hot_vector_size: int,
    axis: int = -1,
    on_value: Tensor | None = None,
    off_value: Tensor | None = None,
) -> Tensor:
    """A new dimension at `axis` with on_value at the index; an index outside it gives off_values only."""
    on = torch.tensor(1, dtype=torch.int32) if on_value is None else on_value
    off = torch.tensor(0, dtype=torch.int32) if off_value is None else off_value
    dim = axis % (indices.dim() + 1)
    positions = torch.arange(one_hot_vector_size).reshape([-1] + [1] * (indices.dim() - dim))
    return torch.where(indices.unsqueeze(dim) == positions, on, off)
