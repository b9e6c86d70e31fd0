"""The token table: embedding and output matrix of a model with tied embeddings, stored once at 6 bits.

Of a block's 8 interleaved rows (blocks.py) and 32 channels that share scales:

    codes uint8 [blocks, K / 32, 192]   4 runs of 32: run i has the low 4 bits of quad i, then of quad i + 4
                                        2 runs of 32: run k has bits 4 and 5 of quads k, k + 2, k + 4, k + 6
    scales float16 [blocks, K / 32, 8]  weight = (code - 32) * scale of the row

6.5 bits a weight, scales included; a last block is padded with zeros. The output product takes int8
activations with a scale per token and group of 32. `csrc/linear/table.cpp` is the C++ twin.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adakv_model.linear.blocks import (
    GROUP,
    ROWS,
    from_quads,
    pack_nibbles,
    quantized_activations,
    remembered,
    to_quads,
    unpack_nibbles,
)

BITS = 6
OFFSET = 1 << (BITS - 1)
BLOCK_BYTES = ROWS * GROUP * BITS // 8
LARGEST = (OFFSET - 1) * torch.finfo(torch.float16).max  # weight that codes and fp16 scales can hold
BITS_PER_WEIGHT = BITS + 16 / GROUP
_CANDIDATES = 8  # scales tried for each group, down to 74 % of the one that reaches the largest weight


def pack(codes: Tensor) -> Tensor:
    """uint8 [rows, K] with values below 64 -> uint8 [blocks, K / 32, 192]."""
    padded = F.pad(codes, (0, 0, 0, -codes.shape[0] % ROWS), value=OFFSET)
    quads = to_quads(padded)  # [B, G, 8, 32]
    high = (quads >> 4).unflatten(2, (4, 2))
    pairs = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
    return torch.cat((pack_nibbles(quads), pairs), dim=2).flatten(2)


def unpack(packed: Tensor) -> Tensor:
    """Inverse of :func:`pack`, padding included: uint8 [8 blocks, K]."""
    nibbles, pairs = packed.unflatten(2, (6, 32)).split((4, 2), dim=2)
    high = torch.cat([(pairs >> shift) & 3 for shift in (0, 2, 4, 6)], dim=2)
    return from_quads(unpack_nibbles(nibbles) | high << 4)


def quantize_table(weight: Tensor) -> tuple[Tensor, Tensor]:
    """float [rows, K] -> packed codes uint8 [blocks, K / 32, 192], scales float16 [blocks, K / 32, 8].

    Each group takes the scale with the least squared error among `_CANDIDATES`, each refitted to its codes.
    Raises ValueError where K is not a multiple of 32. Weights above `LARGEST` are cut to it.
    """
    if weight.shape[1] % GROUP:
        raise ValueError(f"rows of {weight.shape[1]} channels do not divide into groups of {GROUP}")
    parts = [_quantize_rows(rows) for rows in weight.split(4096)]
    codes, scales = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    scales = F.pad(scales, (0, 0, 0, -len(scales) % ROWS))
    return pack(codes), scales.unflatten(0, (-1, ROWS)).transpose(1, 2).contiguous()


def dequantize_table(codes: Tensor, scales: Tensor) -> Tensor:
    """Inverse of :func:`quantize_table`, padding included: float32 [8 blocks, K]."""
    centred = (unpack(codes).float() - OFFSET).unflatten(1, (-1, GROUP))
    return (centred * scales.transpose(1, 2).flatten(0, 1).float().unsqueeze(-1)).flatten(1)


_matrix = remembered(dequantize_table)


def lookup(tokens: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
    """tokens int64 [1, T] -> float32 [1, T, K]."""
    ids = tokens.flatten()
    blocks = dequantize_table(codes[ids // ROWS], scales[ids // ROWS]).unflatten(0, (-1, ROWS))
    return blocks[torch.arange(len(ids)), ids % ROWS].unsqueeze(0)


def product(x: Tensor, codes: Tensor, scales: Tensor, rows: int) -> Tensor:
    """x float32 [1, T, K] -> float32 [1, T, rows]."""
    return F.linear(quantized_activations(x), _matrix(codes, scales))[..., :rows]


class TokenTable(nn.Module):
    """Embedding of quantized rows. forward(tokens int64 [1, T]) -> float32 [1, T, K]."""

    codes: Tensor
    scales: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.rows = weight.shape[0]
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
        self._shared: tuple[TokenTable, ...] = (table,) if shared else ()
        self.table = None if shared else table

    def forward(self, x: Tensor) -> Tensor:
        table = self._shared[0] if self.table is None else self.table
        return torch.ops.adakv.table_product(x, table.codes, table.scales, table.rows)


def _quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    groups = weight.float().unflatten(1, (-1, GROUP))
    peak = groups.abs().amax(-1, keepdim=True)
    best_error = torch.full_like(peak, torch.inf)
    best_scale = torch.zeros_like(peak)
    for i in range(_CANDIDATES):
        trial = peak * (1 - 0.3 * i / _CANDIDATES) / (OFFSET - 1)
        codes = _codes(groups, trial)
        fit = (codes * groups).sum(-1, keepdim=True) / (codes * codes).sum(-1, keepdim=True).clamp(min=1)
        scale = fit.clamp(0, LARGEST / (OFFSET - 1)).half().float()
        error = (groups - _codes(groups, scale) * scale).square().sum(-1, keepdim=True)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale = torch.where(better, scale, best_scale)
    codes = _codes(groups, best_scale) + OFFSET
    return codes.flatten(1).to(torch.uint8), best_scale.squeeze(-1).half()


def _codes(groups: Tensor, scale: Tensor) -> Tensor:
    return torch.round(groups / scale.clamp(min=1e-30)).clamp(-OFFSET, OFFSET - 1)
