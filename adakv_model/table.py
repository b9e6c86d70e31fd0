"""The token table: embedding and output matrix of a model with tied embeddings, stored once at 6 bits.

Format of a row of K channels (K a multiple of 32), for every group of 32 channels:

    codes uint8 [24]   byte i < 16: the low 4 bits of channel i, then of channel i + 16
                       byte 16 + j: bits 4 and 5 of channels j, j + 8, j + 16, j + 24, lowest first
    scale float16      weight = (code - 32) * scale

6.5 bits a weight, scales included. The output product quantizes each token's activations to int8 with one scale
for every group of 32 channels, so that an outlier costs its own group only. `csrc/table.cpp` is the C++ twin.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUP = 32
BITS = 6
OFFSET = 1 << (BITS - 1)
GROUP_BYTES = GROUP * BITS // 8
BITS_PER_WEIGHT = BITS + 16 / GROUP
_CANDIDATES = 16  # scales tried for each group, down to 70 % of the one that reaches the largest weight


def pack(codes: Tensor) -> Tensor:
    """uint8 [rows, K] with values below 64 -> uint8 [rows, K / 32, 24]."""
    groups = codes.reshape(codes.shape[0], -1, GROUP)
    low, high = groups & 15, (groups >> 4).unflatten(-1, (4, 8))
    nibbles = low[..., :16] | low[..., 16:] << 4
    pairs = high[..., 0, :] | high[..., 1, :] << 2 | high[..., 2, :] << 4 | high[..., 3, :] << 6
    return torch.cat((nibbles, pairs), dim=-1)


def unpack(packed: Tensor) -> Tensor:
    """Inverse of :func:`pack`: uint8 [rows, K]."""
    nibbles, pairs = packed[..., :16], packed[..., 16:]
    low = torch.cat((nibbles & 15, nibbles >> 4), dim=-1)
    high = torch.cat([(pairs >> shift) & 3 for shift in (0, 2, 4, 6)], dim=-1)
    return (low | high << 4).flatten(1)


def quantize_table(weight: Tensor) -> tuple[Tensor, Tensor]:
    """float [rows, K] -> packed codes uint8 [rows, K / 32, 24], scales float16 [rows, K / 32].

    Each group takes the scale with the least squared error among `_CANDIDATES`, each refitted to its codes.
    Raises ValueError where K is not a multiple of 32.
    """
    if weight.shape[1] % GROUP:
        raise ValueError(f"rows of {weight.shape[1]} channels do not divide into groups of {GROUP}")
    parts = [_quantize_rows(rows) for rows in weight.split(4096)]
    return torch.cat([codes for codes, _ in parts]), torch.cat([scales for _, scales in parts])


def dequantize_table(codes: Tensor, scales: Tensor) -> Tensor:
    """Inverse of :func:`quantize_table`: float32 [rows, K]."""
    centred = (unpack(codes).float() - OFFSET).unflatten(1, (-1, GROUP))
    return (centred * scales.float().unsqueeze(-1)).flatten(1)


def lookup(tokens: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
    """tokens int64 [1, T] -> float32 [1, T, K]."""
    ids = tokens.flatten()
    return dequantize_table(codes[ids], scales[ids]).unsqueeze(0)


def product(x: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
    """x float32 [1, T, K] -> float32 [1, T, rows]."""
    x = quantized_activations(x)
    blocks = zip(codes.split(8192), scales.split(8192), strict=True)
    return torch.cat([F.linear(x, dequantize_table(c, s)) for c, s in blocks], dim=-1)


def quantized_activations(x: Tensor) -> Tensor:
    """x float32 [..., K] rounded to int8 with a scale per group of 32, as floats."""
    groups = x.unflatten(-1, (-1, GROUP))
    scale = groups.abs().amax(-1, keepdim=True) / 127
    return (torch.round(groups / scale.clamp(min=1e-30)) * scale).flatten(-2)


class TokenTable(nn.Module):
    """Embedding of quantized rows. forward(tokens int64 [1, T]) -> float32 [1, T, K]."""

    codes: Tensor
    scales: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        codes, scales = quantize_table(weight)
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.ops.adakv.table_lookup(tokens, self.codes, self.scales)


class TableHead(nn.Module):
    """Output layer that multiplies with the rows of a table. forward(x [1, T, K]) -> logits [1, T, rows].

    shared: the table belongs to another module and is not registered here, so it is stored once.
    """

    def __init__(self, table: TokenTable, shared: bool) -> None:
        super().__init__()
        self._shared = (table,) if shared else ()
        self.table = None if shared else table

    def forward(self, x: Tensor) -> Tensor:
        table = self._shared[0] if self.table is None else self.table
        return torch.ops.adakv.table_product(x, table.codes, table.scales)


def _quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    groups = weight.float().unflatten(1, (-1, GROUP))
    peak = groups.abs().amax(-1, keepdim=True)
    best_error = torch.full_like(peak, torch.inf)
    best_scale = torch.zeros_like(peak)
    for i in range(_CANDIDATES):
        trial = peak * (1 - 0.3 * i / _CANDIDATES) / (OFFSET - 1)
        codes = _codes(groups, trial)
        fit = (codes * groups).sum(-1, keepdim=True) / (codes * codes).sum(-1, keepdim=True).clamp(min=1)
        scale = fit.clamp(min=0).half().float()
        error = (groups - _codes(groups, scale) * scale).square().sum(-1, keepdim=True)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale = torch.where(better, scale, best_scale)
    codes = _codes(groups, best_scale) + OFFSET
    return pack(codes.flatten(1).to(torch.uint8)), best_scale.squeeze(-1).half()


def _codes(groups: Tensor, scale: Tensor) -> Tensor:
    return torch.round(groups / scale.clamp(min=1e-30)).clamp(-OFFSET, OFFSET - 1)
