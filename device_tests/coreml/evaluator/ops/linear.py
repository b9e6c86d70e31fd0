"""Matrix products and convolutions: accumulated in float32."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from device_tests.coreml.evaluator.registry import kernel


@kernel("linear")
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [*, K] . weight [M, K] transposed + bias [M] -> [*, M]."""
    return F.linear(x, weight, bias)


@kernel("matmul")
def matmul(x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    return torch.matmul(x.mT if transpose_x else x, y.mT if transpose_y else y)


@kernel("einsum")
def einsum(values: list[Tensor], equation: str) -> Tensor:
    return torch.einsum(equation.replace(" ", ""), *values)


@kernel("scaled_dot_product_attention")
def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """query [B, *, L, E], key [B, *, S, E], value [B, *, S, V] -> [B, *, L, V]; a bool mask says which take part."""
    logits = query @ key.mT / math.sqrt(query.shape[-1])
    if attn_mask is not None:
        logits = logits.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype is torch.bool else logits + attn_mask
    return torch.softmax(logits, dim=-1) @ value


@kernel("conv")
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: list[int] | None = None,
    pad_type: str = "valid",
    pad: list[int] | None = None,
    dilations: list[int] | None = None,
    groups: int = 1,
) -> Tensor:
    """x [N, C, *D], weight [M, C / groups, *K], one to three spatial dimensions."""
    kernel_size = weight.shape[2:]
    rank = len(kernel_size)
    strides = strides or [1] * rank
    dilations = dilations or [1] * rank
    padding = _padding(list(x.shape[2:]), list(kernel_size), strides, pad_type, pad, dilations)
    flat = [amount for before_after in reversed(padding) for amount in before_after]  # F.pad begins at the last
    run = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    return run(F.pad(x, flat), weight, bias, stride=strides, dilation=dilations, groups=groups)


def _padding(
    sizes: list[int],
    kernel_size: list[int],
    strides: list[int],
    pad_type: str,
    pad: list[int] | None,
    dilations: list[int],
) -> list[tuple[int, int]]:
    """Zeros before and after each spatial dimension."""
    if pad_type == "valid":
        return [(0, 0)] * len(sizes)
    if pad_type == "custom":
        amounts = pad or [0] * (2 * len(sizes))
        return list(zip(amounts[::2], amounts[1::2], strict=True))
    padding = []
    for size, k, stride, dilation in zip(sizes, kernel_size, strides, dilations, strict=True):
        total = max((math.ceil(size / stride) - 1) * stride + (k - 1) * dilation + 1 - size, 0)
        less, more = total // 2, total - total // 2
        padding.append((less, more) if pad_type == "same" else (more, less))  # same_lower puts the odd one before
    return padding
