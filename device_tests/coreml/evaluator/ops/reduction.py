"""Reductions, sorting and running sums: computed in float32 and rounded once by the caller."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from device_tests.coreml.evaluator.registry import kernel

_Reduction = Callable[[Tensor, list[int], bool], Tensor]

# Name -> (function of a tensor, its dimensions and whether they are kept, whether halves stay halves). Sums of
# int32 stay int32, as the operations declare; torch would widen them.
_REDUCTIONS: dict[str, tuple[_Reduction, bool]] = {
    "reduce_max": (lambda x, dims, keep: x.amax(dims, keepdim=keep), True),
    "reduce_min": (lambda x, dims, keep: x.amin(dims, keepdim=keep), True),
    "reduce_sum": (lambda x, dims, keep: x.sum(dims, keepdim=keep, dtype=x.dtype), False),
    "reduce_mean": (lambda x, dims, keep: x.mean(dims, keepdim=keep), False),
    "reduce_l1_norm": (lambda x, dims, keep: x.abs().sum(dims, keepdim=keep, dtype=x.dtype), False),
    "reduce_l2_norm": (lambda x, dims, keep: x.square().sum(dims, keepdim=keep).sqrt(), False),
    "reduce_sum_square": (lambda x, dims, keep: x.square().sum(dims, keepdim=keep, dtype=x.dtype), False),
    "reduce_log_sum": (lambda x, dims, keep: x.sum(dims, keepdim=keep).log(), False),
    "reduce_log_sum_exp": (lambda x, dims, keep: torch.logsumexp(x, dims, keepdim=keep), False),
}


def _register(name: str, reduce: _Reduction, *, exact: bool) -> None:
    @kernel(name, exact=exact)
    def run(x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
        return reduce(x, axes if axes is not None else list(range(x.dim())), keep_dims)


for _name, (_reduce, _exact) in _REDUCTIONS.items():
    _register(_name, _reduce, exact=_exact)


@kernel("reduce_prod")
def reduce_prod(x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    dims = sorted((axis % x.dim() for axis in (axes if axes is not None else range(x.dim()))), reverse=True)
    for dim in dims:
        x = x.prod(dim, keepdim=keep_dims, dtype=x.dtype)
    return x


# Of equal values the first one wins; Core ML leaves that open. The output's type is in its declaration.
@kernel("reduce_argmax")
def reduce_argmax(x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
    return x.argmax(axis, keepdim=keep_dims)


@kernel("reduce_argmin")
def reduce_argmin(x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
    return x.argmin(axis, keepdim=keep_dims)


@kernel("cumsum")
def cumsum(x: Tensor, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> Tensor:
    x = x.flip(axis) if reverse else x
    sums = x.cumsum(axis, dtype=x.dtype)
    if exclusive:
        sums = sums.roll(1, axis)
        sums.select(axis, 0).zero_()
    return sums.flip(axis) if reverse else sums


@kernel("argsort")
def argsort(x: Tensor, axis: int = -1, ascending: bool = False) -> Tensor:
    return x.argsort(dim=axis, descending=not ascending, stable=True)


@kernel("topk", exact=True)
def topk(
    x: Tensor,
    k: int = 1,
    axis: int = -1,
    ascending: bool = False,
    sort: bool = True,
    return_indices: bool = True,
    output_indices_dtype: str = "int32",
) -> list[Tensor]:
    """The k largest (smallest if ascending) values, always sorted, and their indices; all values for k = -1."""
    order = x.argsort(dim=axis, descending=not ascending, stable=True)
    indices = order.narrow(axis, 0, x.shape[axis] if k == -1 else k)
    values = x.gather(axis, indices)
    return [values, indices] if return_indices else [values]
