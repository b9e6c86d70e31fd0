"""Row quantizer of the KV cache: bands of 2/3/4/8-bit codes with one scale a row, and plain 8- and 16-bit rows.

A *row* is one token of one (layer, kv head, K or V) unit after its calibrated mean was removed and its transform
applied (``tables.py``). Its channels form equal *bands*, the most sensitive first, each with a width of its own;
inside a band, transformed channels are close to Gaussian, so uniform mid-rise levels are near optimal:

    x ~= (2 c - (2^b - 1)) * half_b * s,   c in [0, 2^b - 1],   s ~= rms of the row

``half_b`` is half the MSE-optimal uniform step for a unit Gaussian (Max, "Quantizing for minimum distortion", IRE
Trans. 1960). *Narrow* rows (some band below 8 bits) store s as one byte, a logarithm in steps of 1/16 octave. *Wide*
rows (8 or 16 bits throughout) scale by their absolute maximum and store fp16. ``csrc/cache/quantizer.h`` is the same
arithmetic in C++, operation for operation: sums are folded in halves and nothing is contracted into fused
multiply-adds, so equal inputs give equal bytes on every machine.

Widths of a row are one integer: the width itself if all bands share it, else a byte for each band, first band lowest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntFlag

import torch
from torch import Tensor

SUPPORTED_BITS = (2, 3, 4, 8, 16)
BAND_BITS = (2, 3, 4, 8)  # widths a band of a mixed row may have

#: Uniform step in standard deviations: MSE-optimal for N(0, 1) up to 4 bits; at 8 bits, in mixed rows only, wide
#: enough that nothing a Gaussian yields is clipped.
STEP = {2: 0.996, 3: 0.586, 4: 0.335, 8: 0.05}

#: Mean squared error of those quantizers for N(0, 1); WIDE_MSE of rows that are 8 or 16 bits throughout (step = 2
#: absmax / levels, absmax of 64 samples about 2.6 sigma).
GAUSSIAN_MSE = {2: 0.1188, 3: 0.0374, 4: 0.0115, 8: 2.1e-4}
WIDE_MSE = {8: 3.7e-5, 16: 5.6e-10}

FP16_MAX = 65504.0
UNIT_16 = 2.0**-16  # 16-bit rows: keeps the fp16 scale a normal number

OCTAVE = 16  # scale codes of narrow rows per factor of two
SCALE_ZERO = 128  # the code of scale 1; code 0 is scale 0


class ScaleMode(IntFlag):
    """How a narrow row's scale is stored, and how its levels are read back."""

    RMS = 0  # half the quantizer's step: least squared error
    UNBIASED = 1  # larger by 1 / (1 - MSE): the mean of <x, x_hat> is <x, x>, so sums over many rows do not shrink
    HALF = 2  # the scale is stored as fp16, not as a logarithm in a byte (Core ML; not in csrc/)


GAINS = (ScaleMode.RMS, ScaleMode.UNBIASED)


def _scale_tables() -> tuple[Tensor, Tensor]:
    """Scales float32 [256] by code, and the rms [255] from which on each next code is used."""
    fractions = [2.0 ** (k / (2 * OCTAVE)) for k in range(2 * OCTAVE)]

    def power(half_steps: int) -> float:  # 2^(half_steps / (2 OCTAVE)), one rounding more than a table in float64
        return math.ldexp(fractions[half_steps % (2 * OCTAVE)], half_steps // (2 * OCTAVE))

    scales = [0.0] + [power(2 * (c - SCALE_ZERO)) for c in range(1, 256)]
    bounds = [power(2 * (c - SCALE_ZERO) - 1) for c in range(1, 256)]
    return torch.tensor(scales, dtype=torch.float32), torch.tensor(bounds, dtype=torch.float32)


SCALES, SCALE_BOUNDS = _scale_tables()


def n_bands(head_dim: int) -> int:
    """Bands of a row; each has a multiple of 8 channels."""
    return 4 if head_dim >= 32 else 2


def join_bands(widths: Sequence[int]) -> int:
    """One integer for the widths of a row's bands."""
    if len(set(widths)) == 1:
        return int(widths[0])
    return sum(int(w) << (8 * i) for i, w in enumerate(widths))


def split_bands(bits: int, head_dim: int) -> list[int]:
    """Inverse of :func:`join_bands`. Raises ValueError for a width that no row has."""
    count = n_bands(head_dim)
    if bits in SUPPORTED_BITS:
        return [bits] * count
    widths = [bits >> (8 * i) & 255 for i in range(count)]
    if bits >> (8 * count) or any(w not in BAND_BITS for w in widths):
        raise ValueError(f"unsupported width: {bits:#x} (one of {SUPPORTED_BITS}, or a byte of {BAND_BITS} per band)")
    return widths


def runs(bits: int, head_dim: int) -> list[tuple[int, int]]:
    """(width, channels) of what is packed together: the whole row if uniform, else each band."""
    widths = split_bands(bits, head_dim)
    if bits in SUPPORTED_BITS:
        return [(bits, head_dim)]
    return [(w, head_dim // len(widths)) for w in widths]


def is_narrow(bits: int) -> bool:
    """Whether rows of these widths have a one-byte scale."""
    return bits not in (8, 16)


def row_bytes(bits: int, head_dim: int) -> int:
    """Bytes of one row's codes (without its scale)."""
    return sum(channels * width // 8 for width, channels in runs(bits, head_dim))


def has_scale_code(bits: int, mode: ScaleMode) -> bool:
    """Whether a row's scale is a byte, of the logarithmic grid, rather than fp16."""
    return is_narrow(bits) and not mode & ScaleMode.HALF


def scale_bytes(bits: int, mode: ScaleMode = ScaleMode.RMS) -> int:
    """Bytes of one row's scale."""
    return 1 if has_scale_code(bits, mode) else 2


def half_step(width: int, mode: ScaleMode) -> float:
    """What odd levels of a narrow row are multiplied by, besides the row's scale."""
    half = STEP[width] / 2
    return half / (1 - GAUSSIAN_MSE[width]) if mode & ScaleMode.UNBIASED else half


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


def transform(x: Tensor, matrix: Tensor) -> Tensor:
    """matrix @ x for rows x [..., D], matrix [..., D, D]: summed over columns in order, so bytes can be compared."""
    out = x[..., :1] * matrix[..., :, 0]
    for j in range(1, x.shape[-1]):
        out = out + x[..., j : j + 1] * matrix[..., :, j]
    return out


def fold_sum(x: Tensor) -> Tensor:
    """Sum over the last axis (a power of two), folding the upper half onto the lower: one fixed order."""
    while x.shape[-1] > 1:
        half = x.shape[-1] // 2
        x = x[..., :half] + x[..., half:]
    return x[..., 0]


def root_mean_square(x: Tensor) -> Tensor:
    return torch.sqrt(fold_sum(x * x) * (1.0 / x.shape[-1]))


def scale_code(x: Tensor) -> Tensor:
    """Scale codes uint8 [...] of narrow rows x [..., D]: the rms on a logarithmic grid, saturating."""
    return torch.searchsorted(SCALE_BOUNDS, root_mean_square(x).contiguous(), right=True).to(torch.uint8)


def narrow_scale(x: Tensor, mode: ScaleMode) -> tuple[Tensor, Tensor]:
    """Scales float32 [...] for the codes of narrow rows x [..., D], and the same as stored: uint8 or float16."""
    if mode & ScaleMode.HALF:
        rms = root_mean_square(x)
        return rms, rms.clamp(max=FP16_MAX).half()
    code = scale_code(x)
    return SCALES[code.long()], code


def scale_value(stored: Tensor) -> Tensor:
    """The scale float32 [...] that a stored one stands for."""
    return SCALES[stored.long()] if stored.dtype == torch.uint8 else stored.float()


def narrow_codes(x: Tensor, scale: Tensor, width: int | Tensor, step: float | Tensor) -> Tensor:
    """Codes, as floats, of rows x [..., D] with scales [...]; width and step may differ by channel."""
    levels = torch.exp2(torch.as_tensor(width, dtype=torch.float32))
    pace = scale.unsqueeze(-1) * step
    inverse = torch.where(pace > 0, 1.0 / pace, torch.zeros_like(pace))
    return torch.floor(x * inverse + levels / 2).clamp(min=0).minimum(levels - 1)


def narrow_values(codes: Tensor, scale: Tensor, width: int | Tensor, half: float | Tensor) -> Tensor:
    """Inverse of :func:`narrow_codes`; `half` from :func:`half_step`."""
    levels = torch.exp2(torch.as_tensor(width, dtype=torch.float32))
    return (codes * 2 - (levels - 1)) * (scale.unsqueeze(-1) * half)


def quantize(x: Tensor, bits: int, mode: ScaleMode = ScaleMode.RMS) -> tuple[Tensor, Tensor]:
    """Quantize transformed rows. mode: of narrow rows; only how it stores the scale matters here.

    x: float32 [..., D]. Returns codes [..., D], uint8 (int32 for 16 bits), and the scale as stored [...]: uint8
    (narrow rows) or float16.
    """
    if is_narrow(bits):
        start, parts = 0, []
        scale, stored = narrow_scale(x, mode)
        for width, channels in runs(bits, x.shape[-1]):
            parts.append(narrow_codes(x[..., start : start + channels], scale, width, STEP[width]))
            start += channels
        return torch.cat(parts, dim=-1).to(torch.uint8), stored
    levels, peak = 1 << bits, x.abs().amax(-1)
    if bits == 16:  # codes for the scale as stored: its rounding would otherwise be the largest error
        stored = _half_not_below(peak.clamp(max=FP16_MAX) * (65536.0 / 65535.0))
        half = stored.float() * UNIT_16
    else:
        half = peak * (1.0 / 255.0)
        stored = half.clamp(max=FP16_MAX).half()
    inverse = torch.where(half > 0, 0.5 / half, torch.zeros_like(half))
    codes = torch.floor(x * inverse.unsqueeze(-1) + levels / 2).clamp(0, levels - 1)
    return codes.to(torch.int32 if bits == 16 else torch.uint8), stored


def dequantize(codes: Tensor, scale: Tensor, bits: int, mode: ScaleMode = ScaleMode.RMS) -> Tensor:
    """Inverse of :func:`quantize`: float32 [..., D]. mode concerns narrow rows only."""
    if is_narrow(bits):
        value, start, parts = scale_value(scale), 0, []
        for width, channels in runs(bits, codes.shape[-1]):
            part = codes[..., start : start + channels].float()
            parts.append(narrow_values(part, value, width, half_step(width, mode)))
            start += channels
        return torch.cat(parts, dim=-1)
    odd = codes.float() * 2 - ((1 << bits) - 1)
    step = scale.float() * UNIT_16 if bits == 16 else scale.float()
    return odd * step.unsqueeze(-1)


def _half_not_below(x: Tensor) -> Tensor:
    """The smallest float16 at or above each finite, non-negative float32 (saturating at the largest)."""
    half = x.clamp(max=FP16_MAX).half()
    above = (half.view(torch.int16) + 1).view(torch.float16)
    return torch.where((half.float() < x) & (half.float() < FP16_MAX), above, half)


def fake_quantize(x: Tensor, bits: int, mode: ScaleMode = ScaleMode.RMS) -> Tensor:
    """Transformed rows [..., D] as the cache would read them back."""
    return dequantize(*quantize(x, bits, mode), bits, mode)
