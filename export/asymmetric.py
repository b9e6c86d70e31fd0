"""Fits 4-bit asymmetric grids to the weights of linear layers (adakv_model/linear/int4.py has the format).

A Q4_1 checkpoint stores, for every group of 32 inputs, w = d * c + m with c in 0..15: its codes are taken as they
are. Steps and offsets then have 8 bits with units per row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from adakv_model.linear.blocks import GROUP
from adakv_model.linear.int4 import Int4Block, Int4NormLinear, Int4Weight, encode
from adakv_model.model import Block, RMSNorm

_LEVELS = 15
# Range shrinkages tried for each end of a group's range, in sixteenths of the range (see `fit_groups`).
_SHRINK = (0.0, 0.5, 1.0)
_AT_A_TIME = 1 << 18  # weights, whose temporaries stay in a core's cache: three times as fast as a whole matrix


def fit_groups(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """float [N, K] -> codes 0..15 float [N, K / 32, 32], d and m float32 [N, K / 32, 1].

    Weights that lie on a 4-bit grid, as a dequantised Q4_1 checkpoint's do, give that grid back exactly. Others get
    the least squared error over a few clippings of each end of the range, each refitted by least squares to its
    codes. Raises ValueError where K is not a multiple of 32.
    """
    if weight.shape[1] % GROUP:
        raise ValueError(f"{weight.shape[1]} inputs do not divide into groups of {GROUP}")
    parts = [
        _fit(rows.float().unflatten(1, (-1, GROUP))) for rows in weight.split(max(1, _AT_A_TIME // weight.shape[1]))
    ]
    codes, step, low = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return codes, step, low


def _fit(groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`fit_groups` of groups float32 [N, G, 32]."""
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


def int4_weight(weight: Tensor) -> Int4Weight:
    """float [N, K] on 4-bit grids; N a multiple of 8, K of 32."""
    codes, step, _ = fit_groups(weight)
    return Int4Weight(*encode(weight, codes, step))


def int4_block(block: Block) -> Int4Block:
    """The quantized form of a layer."""
    mlp = block.mlp
    gate_up = torch.cat((mlp.gate_proj.weight.data, mlp.up_proj.weight.data))
    return Int4Block(
        int4_norm_linear(block.attention_norm, block.qkv_proj.weight.data),
        int4_weight(block.o_proj.weight.data),
        int4_norm_linear(block.mlp_norm, gate_up),
        int4_weight(mlp.down_proj.weight.data),
    )


def int4_norm_linear(norm: RMSNorm, weight: Tensor) -> Int4NormLinear:
    """A norm and the float matrix [N, K] that reads it."""
    return Int4NormLinear(norm.weight.data, norm.eps, int4_weight(weight))


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
