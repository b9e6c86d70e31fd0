"""What the token table and the 4-bit layers share: interleaved rows and int8 activations.

Rows are interleaved in blocks of 8, so that one instruction multiplies four channels of eight rows. A *quad* is four
channels; byte 4 r + c of its 32 belongs to row r and channel 4 q + c. `csrc/linear/linear.h` is the C++ twin.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

GROUP = 32
ROWS = 8


def remembered(decode: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """`decode` of a constant's two tensors, kept while the first lives: eager runs read every matrix at every token."""
    known = WeakTensorKeyDictionary()

    def recall(blocks: Tensor, units: Tensor) -> Tensor:
        if blocks not in known:
            known[blocks] = decode(blocks, units)
        return known[blocks]

    return recall


def to_quads(codes: Tensor) -> Tensor:
    """uint8 [8 B, K] -> [B, K / 32, 8 quads, 32]."""
    return codes.reshape(-1, ROWS, codes.shape[1] // GROUP, 8, 4).permute(0, 2, 3, 1, 4).flatten(3)


def from_quads(quads: Tensor) -> Tensor:
    """Inverse of :func:`to_quads`."""
    groups = quads.shape[1]
    return quads.unflatten(3, (ROWS, 4)).permute(0, 3, 1, 2, 4).reshape(-1, groups * GROUP)


def pack_nibbles(quads: Tensor) -> Tensor:
    """Low 4 bits of uint8 [B, G, 8, 32] -> [B, G, 4, 32]: run i has quad i in its low bits, quad i + 4 above."""
    return quads[:, :, :4] & 15 | (quads[:, :, 4:] & 15) << 4


def unpack_nibbles(runs: Tensor) -> Tensor:
    """Inverse of :func:`pack_nibbles`."""
    return torch.cat((runs & 15, runs >> 4), dim=2)


def quantized_activations(x: Tensor) -> Tensor:
    """x float32 [..., K] rounded to int8 with a scale per group of 32, as floats: an outlier costs its group only."""
    groups = x.unflatten(-1, (-1, GROUP))
    scale = groups.abs().amax(-1, keepdim=True) / 127
    return (torch.round(groups / scale.clamp(min=1e-30)) * scale).flatten(-2)
