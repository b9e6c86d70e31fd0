"""4-bit asymmetric linear layers out of operations that XNNPACK has.

A Q4_1 checkpoint stores, for every group of 32 inputs, w = d * c + m with c in 0..15. XNNPACK's 4-bit kernels are
symmetric, so with w = d * (c - 8) + b and b = m + 8 d:

    y = W4 x + B s        W4: int4 codes c - 8 with a scale d per group     s: the sums of x over its groups of 32
                          B: the offsets b, int8 per output row             (1/32 of the multiply-adds)

Both products quantize their input to int8 per token. d is rounded to bfloat16, the type of XNNPACK's group scales
(at most 1/64 of a step of the code), b to 8 bits. 4 + 16/32 + 8/32 bits a weight and a float per output row.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUP = 32
_LEVELS = 15
# Range shrinkages tried for each end of a group's range, in sixteenths of the range (see `fit_groups`).
_SHRINK = (0.0, 0.5, 1.0)


def fit_groups(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """float [N, K] -> codes 0..15 float [N, K / 32, 32], d and m float32 [N, K / 32, 1].

    Weights that lie on a 4-bit grid, as a dequantised Q4_1 checkpoint's do, give that grid back exactly. Others get
    the least squared error over a few clippings of each end of the range, each refitted by least squares to its
    codes. Raises ValueError where K is not a multiple of 32.
    """
    if weight.shape[1] % GROUP:
        raise ValueError(f"{weight.shape[1]} inputs do not divide into groups of {GROUP}")
    groups = weight.float().unflatten(1, (-1, GROUP))
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    best = _round(groups, (high - low) / _LEVELS, low)
    error = _error(groups, *best)
    exact = error <= 1e-10 * groups.square().sum(-1, keepdim=True)
    if bool(exact.all()):
        return best
    for down in _SHRINK:
        for up in _SHRINK:
            step = (high - low) * (1 - (down + up) / 16) / _LEVELS
            codes, *_ = _round(groups, step, low + (high - low) * down / 16)
            trial = _round(groups, *_least_squares(groups, codes))
            trial_error = _error(groups, *trial)
            better = ~exact & (trial_error < error)
            error = torch.where(better, trial_error, error)
            best = tuple(torch.where(better, t, b) for t, b in zip(trial, best, strict=True))  # type: ignore[assignment]
    return best


class AsymmetricLinear(nn.Module):
    """y = W x with W in groups of 32 on 4-bit asymmetric grids. x [1, T, K] -> [1, T, N]."""

    def __init__(self, weight: Tensor) -> None:
        """weight: float [N, K], K a multiple of 32."""
        super().__init__()
        codes, step, low = fit_groups(weight)
        step = step.bfloat16().float()
        offsets = low + 8 * step  # of the rounded step, so that code 0 is exactly `low`
        self.weight = nn.Parameter(_int_weight((codes - 8).flatten(1), step.squeeze(-1), 4), False)
        offsets = offsets.squeeze(-1)
        scale = offsets.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
        self.offsets = nn.Parameter(_int_weight(torch.round(offsets / scale), scale, 8), False)
        self.ones = nn.Parameter(torch.ones(1, GROUP), False)

    def forward(self, x: Tensor) -> Tensor:
        groups = x.shape[-1] // GROUP
        # XNNPACK has no sum over the last dimension; a linear with one output is one.
        sums = F.linear(x.reshape(1, -1, groups, GROUP), self.ones).reshape(1, -1, groups)
        return F.linear(x, self.weight) + F.linear(sums, self.offsets)


def _int_weight(codes: Tensor, scale: Tensor, bits: int) -> Tensor:
    """torchao's exportable weight, int8 activations per token. codes [N, K], scale [N, groups]."""
    from torchao.quantization import IntxUnpackedToInt8Tensor
    from torchao.quantization.quantize_.workflows.intx.intx_unpacked_to_int8_tensor import (
        IntxUnpackedToInt8TensorActivationQuantization as Activations,
    )

    return IntxUnpackedToInt8Tensor(
        qdata=codes.to(torch.int8),
        scale=scale,
        zero_point=torch.zeros_like(scale, dtype=torch.int8),
        target_dtype=getattr(torch, f"int{bits}"),
        block_size=(1, codes.shape[1] // scale.shape[1]),
        dtype=torch.float32,
        activation_quantization=Activations.INT8_ASYM_PER_TOKEN,
    )


def _round(groups: Tensor, step: Tensor, low: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.round((groups - low) / step.clamp(min=1e-30)).clamp(0, _LEVELS), step, low


def _error(groups: Tensor, codes: Tensor, step: Tensor, low: Tensor) -> Tensor:
    return (groups - codes * step - low).square().sum(-1, keepdim=True)


def _least_squares(groups: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Step and low that fit fixed codes best."""
    mean_code, mean = codes.mean(-1, keepdim=True), groups.mean(-1, keepdim=True)
    centred = codes - mean_code
    step = (centred * (groups - mean)).sum(-1, keepdim=True) / centred.square().sum(-1, keepdim=True).clamp(min=1e-12)
    return step, mean - step * mean_code
