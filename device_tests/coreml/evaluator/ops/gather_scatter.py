"""Reads and writes at computed places. Negative indices count from the end; places outside raise IndexError.

Core ML leaves both undefined from iOS 17 on, so a program that relies on them is wrong on devices; a negative index
is the behaviour of the older operations and of coremltools' own evaluation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from device_tests.coreml.evaluator.registry import kernel


@kernel("gather", exact=True)
def gather(x: Tensor, indices: Tensor, axis: int = 0, batch_dims: int = 0, validate_indices: bool = False) -> Tensor:
    """x [B*, M*, D, R*], indices [B*, N*] into D at `axis` -> [B*, M*, N*, R*], with `batch_dims` dimensions in B."""
    axis = axis % x.dim()
    at = _checked(indices, x.shape[axis])
    if batch_dims == 0 and axis == 0:
        return x[at]
    picked = x.movedim(axis, batch_dims)[(*_batch_index(at, batch_dims), at)]  # [B*, N*, M*, R*]
    new = range(batch_dims, indices.dim())
    return picked.movedim(tuple(new), tuple(axis + place for place in range(len(new))))


@kernel("gather_along_axis", exact=True)
def gather_along_axis(x: Tensor, indices: Tensor, axis: int = 0, validate_indices: bool = False) -> Tensor:
    """Result [i, j, ...] is x at indices[i, j, ...] along `axis`, elsewhere at i, j, ..."""
    return x.gather(axis, _checked(indices, x.shape[axis]))


@kernel("gather_nd", exact=True)
def gather_nd(x: Tensor, indices: Tensor, batch_dims: int = 0, validate_indices: bool = False) -> Tensor:
    """x [B*, D*, R*], indices [B*, N*, len(D)] -> [B*, N*, R*]."""
    places = [_checked(at, x.shape[batch_dims + i]) for i, at in enumerate(indices.unbind(-1))]
    return x[(*_batch_index(places[0], batch_dims), *places)]


@kernel("scatter")
def scatter(
    data: Tensor, indices: Tensor, updates: Tensor, axis: int = 0, mode: str = "add", validate_indices: bool = False
) -> Tensor:
    """data with updates [D[:axis], *indices.shape, D[axis + 1:]] combined at `indices` of `axis`."""
    return _combined(data, gather(_places(data), indices, axis), updates, mode)


@kernel("scatter_along_axis")
def scatter_along_axis(
    data: Tensor, indices: Tensor, updates: Tensor, axis: int = 0, mode: str = "add", validate_indices: bool = False
) -> Tensor:
    """data with updates [i, j, ...] combined at indices[i, j, ...] of `axis`."""
    return _combined(data, gather_along_axis(_places(data), indices, axis), updates, mode)


@kernel("scatter_nd")
def scatter_nd(
    data: Tensor, indices: Tensor, updates: Tensor, mode: str = "add", validate_indices: bool = False
) -> Tensor:
    """data with updates [N*, R*] combined at the places that `gather_nd` would read."""
    return _combined(data, gather_nd(_places(data), indices), updates, mode)


def _places(data: Tensor) -> Tensor:
    """The position of every element in the flattened tensor."""
    return torch.arange(data.numel()).reshape(data.shape)


_REDUCE = {"add": "sum", "sub": "sum", "mul": "prod", "div": "prod", "max": "amax", "min": "amin"}


def _combined(data: Tensor, places: Tensor, updates: Tensor, mode: str) -> Tensor:
    """data with `updates` combined at flat `places`; the order among equal places matters only for mode update."""
    flat, at, values = data.flatten(), places.flatten(), updates.flatten()
    if mode == "update":
        result = flat.scatter(0, at, values)
    elif mode == "div":
        result = flat / torch.ones_like(flat).scatter_reduce(0, at, values, _REDUCE[mode])
    else:
        result = flat.scatter_reduce(0, at, -values if mode == "sub" else values, _REDUCE[mode])
    return result.reshape(data.shape)


def _checked(indices: Tensor, size: int) -> Tensor:
    """int64 indices from 0 to size - 1."""
    wide = indices.long()
    if wide.numel() and not (-size <= int(wide.min()) and int(wide.max()) < size):
        raise IndexError(f"index {int(wide.min())} to {int(wide.max())} in a dimension of {size}")
    return torch.where(wide < 0, wide + size, wide)


def _batch_index(indices: Tensor, batch_dims: int) -> list[Tensor]:
    """For each batch dimension its own positions, shaped to broadcast with `indices`."""
    return [
        torch.arange(indices.shape[dim]).reshape([-1 if d == dim else 1 for d in range(indices.dim())])
        for dim in range(batch_dims)
    ]
