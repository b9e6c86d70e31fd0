"""Where the codes of packed rows lie; ``csrc/cache/tile.h`` is the same in C++, ``docs/cache-format.md`` draws it.

Rows lie in blocks of 16 slots, and a block in *tiles* of 16 lanes x 4 codes. A K tile holds four channels of each of
the 16 slots, a V tile four slots of each of 16 channels: so a score and a weighted sum are the same product of a tile
with four numbers, for 16 results at once. The 64 codes of a tile, lane after lane, are packed like one run. Rows of 16
bits are not tiled.
"""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor

from adakv_model.quantizer import row_bytes, runs

BLOCK = 16  # slots of a block; lanes of a tile
QUAD = 4  # codes of a lane in a tile


class Side(IntEnum):
    KEY = 0
    VALUE = 1


def padded(rows: int) -> int:
    """Rows in whole blocks."""
    return -(-rows // BLOCK) * BLOCK


def pack_blocks(codes: Tensor, bits: int, side: Side) -> Tensor:
    """Codes [n, D] of whole blocks of rows, as quantized -> uint8 [n * row_bytes(bits, D)].

    Raises ValueError for V rows with bands: lanes of a V tile share a width.
    """
    n, dim = codes.shape
    if side == Side.VALUE and len(runs(bits, dim)) > 1:
        raise ValueError(f"V rows have one width, not {bits:#x}")
    blocks = codes.reshape(n // BLOCK, BLOCK, dim)
    if bits == 16:
        ordered = (blocks.transpose(1, 2) if side == Side.KEY else blocks).reshape(-1).to(torch.int32)
        return torch.stack((ordered & 255, ordered >> 8), dim=-1).to(torch.uint8).flatten()
    if (
        side == Side.VALUE
    ):  # [block, slot quad, element, channel group, lane] -> [block, channel group, slot quad, lane, element]
        tiles = blocks.reshape(-1, BLOCK // QUAD, QUAD, dim // BLOCK, BLOCK).permute(0, 3, 1, 4, 2)
        return pack_run(tiles.reshape(n // BLOCK, -1, BLOCK * QUAD), bits).flatten()
    parts = blocks.split([channels for _, channels in runs(bits, dim)], dim=2)
    packed = [
        pack_run(part.unflatten(2, (-1, QUAD)).transpose(1, 2).flatten(2), width).flatten(1)
        for part, (width, _) in zip(parts, runs(bits, dim), strict=True)
    ]
    return torch.cat(packed, dim=1).flatten()


def unpack_blocks(packed: Tensor, bits: int, dim: int, side: Side) -> Tensor:
    """Inverse of :func:`pack_blocks`: uint8 codes [n, D] (int32 for 16 bits)."""
    blocks = packed.reshape(-1, BLOCK * row_bytes(bits, dim))
    if bits == 16:
        low, high = blocks.to(torch.int32).unflatten(1, (-1, 2)).unbind(-1)
        codes = low | (high << 8)
        if side == Side.KEY:
            codes = codes.unflatten(1, (dim, BLOCK)).transpose(1, 2)
        return codes.reshape(-1, dim)
    if side == Side.VALUE:
        tiles = unpack_run(blocks.unflatten(1, (dim // QUAD, -1)), bits, BLOCK * QUAD)
        tiles = tiles.reshape(-1, dim // BLOCK, BLOCK // QUAD, BLOCK, QUAD)
        return tiles.permute(0, 2, 4, 1, 3).reshape(-1, dim)
    sizes = [BLOCK * channels * width // 8 for width, channels in runs(bits, dim)]
    parts = []
    for part, (width, channels) in zip(blocks.split(sizes, dim=1), runs(bits, dim), strict=True):
        tiles = unpack_run(part.unflatten(1, (channels // QUAD, -1)), width, BLOCK * QUAD)
        parts.append(tiles.unflatten(2, (BLOCK, QUAD)).transpose(1, 2).flatten(2))
    return torch.cat(parts, dim=2).reshape(-1, dim)


def _pack_plane(codes: Tensor, bits: int) -> Tensor:
    """Pack b-bit codes [..., C] into [..., C b / 8] bytes: byte j holds codes j, j + n, j + 2n, ..."""
    fields = 8 // bits
    parts = codes.reshape(*codes.shape[:-1], fields, codes.shape[-1] // fields)
    out = parts[..., 0, :].clone()
    for f in range(1, fields):
        out |= parts[..., f, :] << (bits * f)
    return out


def _unpack_plane(packed: Tensor, bits: int) -> Tensor:
    fields, mask = 8 // bits, (1 << bits) - 1
    return torch.cat([(packed >> (bits * f)) & mask for f in range(fields)], dim=-1)


def pack_run(codes: Tensor, width: int) -> Tensor:
    """uint8 codes [..., C] -> [..., C width / 8]. 2, 4 and 8 bits are one plane; 3 bits are a plane of the two low bits
    followed by a plane of the high bit, so that unpacking needs only masks and shifts of whole vectors."""
    if width == 8:
        return codes.clone()
    if width == 3:
        return torch.cat([_pack_plane(codes & 3, 2), _pack_plane(codes >> 2, 1)], dim=-1)
    return _pack_plane(codes, width)


def unpack_run(packed: Tensor, width: int, channels: int) -> Tensor:
    """Inverse of :func:`pack_run`."""
    if width == 8:
        return packed.clone()
    if width == 3:
        low = channels // 4
        return _unpack_plane(packed[..., :low], 2) | (_unpack_plane(packed[..., low:], 1) << 2)
    return _unpack_plane(packed, width)
