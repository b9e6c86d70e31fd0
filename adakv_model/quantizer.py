"""Row quantizer of the KV cache: Hadamard rotation, 2/3/4/8/16-bit codes, one fp16 scale a row.

A *row* is one token of one (layer, kv head, K or V) unit after its calibrated mean was removed and the
Hadamard transform applied; rotated rows are close to Gaussian, so uniform mid-rise levels are near optimal:

    x ~= (2 c - (2^b - 1)) * scale * unit_b,   c in [0, 2^b - 1],   scale = step_b / 2 * rms(x)

``step_b`` is the MSE-optimal uniform step for a unit Gaussian (Max, "Quantizing for minimum distortion",
IRE Trans. 1960). 8- and 16-bit rows scale by their absolute maximum. unit_b is 1, and 2^-16 for 16 bits, so that
the fp16 scale stays a normal number; 16 such bits are an order of magnitude closer to the row than 16 fp16 bits.

``csrc/quantizer.h`` is the same arithmetic in C++, operation for operation: sums are folded in halves and
nothing is contracted into fused multiply-adds, so equal inputs give equal bytes on every machine.
"""

from __future__ import annotations

import math
from enum import IntEnum

import torch
from torch import Tensor

SUPPORTED_BITS = (2, 3, 4, 8, 16)

#: MSE-optimal uniform quantizer step for N(0, 1), in standard deviations.
GAUSSIAN_STEP = {2: 0.996, 3: 0.586, 4: 0.335}

#: Mean squared error of those quantizers for N(0, 1); 8 and 16 bits: step = 2 absmax / levels, absmax of 64
#: samples about 2.6 sigma.
GAUSSIAN_MSE = {2: 0.1188, 3: 0.0374, 4: 0.0115, 8: 3.7e-5, 16: 5.6e-10}

SCALE_BYTES = 2
FP16_MAX = 65504.0
UNIT_16 = 2.0**-16


class ScaleMode(IntEnum):
    """How a row's stored scale is chosen once its codes are known."""

    RMS = 0  # step / 2 * rms: the quantizer's own step
    UNBIASED = 1  # (x . x) / (x . q): <x, x_hat> = <x, x>, so a logit is not shrunk on average


def row_bytes(bits: int, head_dim: int) -> int:
    """Bytes of one row's codes (without its scale)."""
    if bits not in SUPPORTED_BITS:
        raise ValueError(f"unsupported width: {bits} bits (one of {SUPPORTED_BITS})")
    return head_dim * bits // 8


def hadamard(x: Tensor) -> Tensor:
    """Orthonormal fast Walsh-Hadamard transform over the last axis (a power of two); its own inverse."""
    d = x.shape[-1]
    lead, h = x.shape[:-1], 1
    while h < d:
        pair = x.reshape(*lead, d // (2 * h), 2, h)
        a, b = pair[..., 0, :], pair[..., 1, :]
        x = torch.stack((a + b, a - b), dim=-2).reshape(*lead, d)
        h *= 2
    return x * (1.0 / math.sqrt(d))


def fold_sum(x: Tensor) -> Tensor:
    """Sum over the last axis (a power of two), folding the upper half onto the lower: one fixed order."""
    while x.shape[-1] > 1:
        half = x.shape[-1] // 2
        x = x[..., :half] + x[..., half:]
    return x[..., 0]


def quantize(x: Tensor, bits: int, mode: ScaleMode = ScaleMode.RMS) -> tuple[Tensor, Tensor]:
    """Quantize rotated rows.

    x: float32 [..., D]. Returns codes [..., D], uint8 (int32 for 16 bits), and scale float16 [...].
    """
    levels = 1 << bits
    if bits == 16:  # codes for the scale as stored: its rounding would otherwise be the largest error
        scale = _half_not_below(x.abs().amax(-1).clamp(max=FP16_MAX) * (65536.0 / 65535.0))
        half_step = scale.float() * UNIT_16
    elif bits == 8:
        half_step = x.abs().amax(-1) * (1.0 / 255.0)
    else:
        rms = torch.sqrt(fold_sum(x * x) * (1.0 / x.shape[-1]))
        half_step = rms * (GAUSSIAN_STEP[bits] / 2)
    inverse = torch.where(half_step > 0, 0.5 / half_step, torch.zeros_like(half_step))
    codes = torch.floor(x * inverse.unsqueeze(-1) + levels / 2).clamp(0, levels - 1)
    if bits == 16:
        return codes.to(torch.int32), scale
    scale = half_step
    if mode == ScaleMode.UNBIASED and bits < 8:
        odd = codes * 2 - (levels - 1)
        xq = fold_sum(x * odd)
        scale = torch.where(xq > 0, fold_sum(x * x) / xq, half_step)
    return codes.to(torch.uint8), scale.clamp(max=FP16_MAX).half()


def dequantize(codes: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Inverse of :func:`quantize`: float32 [..., D]."""
    odd = codes.float() * 2 - ((1 << bits) - 1)
    step = scale.float() * UNIT_16 if bits == 16 else scale.float()
    return odd * step.unsqueeze(-1)


def _half_not_below(x: Tensor) -> Tensor:
    """The smallest float16 at or above each finite, non-negative float32 (saturating at the largest)."""
    half = x.clamp(max=FP16_MAX).half()
    above = (half.view(torch.int16) + 1).view(torch.float16)
    return torch.where((half.float() < x) & (half.float() < FP16_MAX), above, half)


def _pack_plane(codes: Tensor, bits: int) -> Tensor:
    """Pack b-bit codes [..., D] into [..., D b / 8] bytes: byte j holds channels j, j + n, j + 2n, ..."""
    fields = 8 // bits
    parts = codes.reshape(*codes.shape[:-1], fields, codes.shape[-1] // fields)
    out = parts[..., 0, :].clone()
    for f in range(1, fields):
        out |= parts[..., f, :] << (bits * f)
    return out


def _unpack_plane(packed: Tensor, bits: int) -> Tensor:
    fields, mask = 8 // bits, (1 << bits) - 1
    return torch.cat([(packed >> (bits * f)) & mask for f in range(fields)], dim=-1)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack quantized codes [..., D] into uint8 [..., row_bytes(bits, D)].

    2, 4 and 8 bits are one plane; 3 bits are a plane of the two low bits followed by a plane of the high bit,
    so that unpacking needs only masks and shifts of whole vectors. 16 bits are little-endian.
    """
    if bits == 16:
        return torch.stack((codes & 255, codes >> 8), dim=-1).to(torch.uint8).flatten(-2)
    if bits == 8:
        return codes.clone()
    if bits == 3:
        return torch.cat([_pack_plane(codes & 3, 2), _pack_plane(codes >> 2, 1)], dim=-1)
    return _pack_plane(codes, bits)


def unpack(packed: Tensor, bits: int, head_dim: int) -> Tensor:
    """Inverse of :func:`pack`: uint8 codes [..., D] (int32 for 16 bits)."""
    if bits == 16:
        low, high = packed.to(torch.int32).unflatten(-1, (-1, 2)).unbind(-1)
        return low | (high << 8)
    if bits == 8:
        return packed.clone()
    if bits == 3:
        low = head_dim // 4
        return _unpack_plane(packed[..., :low], 2) | (_unpack_plane(packed[..., low:], 1) << 2)
    return _unpack_plane(packed, bits)


def fake_quantize(x: Tensor, bits: int, mode: ScaleMode = ScaleMode.RMS) -> Tensor:
    """Rotated rows [..., D] as the cache would read them back."""
    return dequantize(*quantize(x, bits, mode), bits)
