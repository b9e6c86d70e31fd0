"""Linear layers of 4-bit weights on asymmetric grids: a code, a step and an offset for every group of 32 inputs.

    weight = (code - 8) * step * step_unit + offset * offset_unit      units per row, step uint8, offset int8

    blocks uint8 [N / 8, K / 32, 144]   for 8 interleaved rows (blocks.py): 4 runs of 32 codes, 8 steps, 8 offsets
    units float32 [N / 8, 2, 8]         step units, then offset units of the 8 rows

4.5 bits a weight and 64 bits a row. Activations are int8 with a scale per token and group of 32. A layer is four
operators, each a product with all that comes before it and the residual that comes after;
`csrc/linear/int4.cpp` is their C++ twin.
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

BIAS = 8
CODE_BYTES = ROWS * GROUP // 2
BLOCK_BYTES = CODE_BYTES + 2 * ROWS


def encode(weight: Tensor, codes: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and the codes chosen for them -> blocks, units.

    weight: float [N, K]; codes: 0..15 float [N, K / 32, 32]; step: float [N, K / 32, 1], at least 0. The offsets are
    the best ones for the rounded steps. Raises ValueError where N is no multiple of 8.
    """
    if weight.shape[0] % ROWS:
        raise ValueError(f"{weight.shape[0]} rows do not divide into blocks of {ROWS}")
    step = step.float()
    step_unit = step.amax(1, keepdim=True) / 255
    steps = torch.round(step / step_unit.clamp(min=1e-30))
    groups = weight.float().unflatten(1, (-1, GROUP))
    offset = groups.mean(-1, keepdim=True) - (codes.mean(-1, keepdim=True) - BIAS) * steps * step_unit
    offset_unit = offset.abs().amax(1, keepdim=True) / 127
    offsets = torch.round(offset / offset_unit.clamp(min=1e-30)).to(torch.int8).view(torch.uint8)
    runs = pack_nibbles(to_quads(codes.to(torch.uint8).flatten(1))).flatten(2)
    per_row = (x.squeeze(-1).unflatten(0, (-1, ROWS)).transpose(1, 2) for x in (steps.to(torch.uint8), offsets))
    units = torch.cat((step_unit, offset_unit), dim=1).reshape(-1, ROWS, 2).transpose(1, 2)
    return torch.cat((runs, *per_row), dim=2), units.contiguous()


def decode(blocks: Tensor, units: Tensor) -> Tensor:
    """The weights float32 [N, K] that blocks and units stand for."""
    runs, steps, offsets = blocks.split((CODE_BYTES, ROWS, ROWS), dim=2)
    centred = from_quads(unpack_nibbles(runs.unflatten(2, (4, 32)))).float().unflatten(1, (-1, GROUP)) - BIAS
    per_row = [x.transpose(1, 2).flatten(0, 1).float() for x in (steps, offsets.contiguous().view(torch.int8))]
    step, offset = (x * unit.flatten().unsqueeze(1) for x, unit in zip(per_row, units.unbind(1), strict=True))
    return (centred * step.unsqueeze(-1) + offset.unsqueeze(-1)).flatten(1)


_matrix = remembered(decode)


def norm_linear(x: Tensor, norm: Tensor, eps: float, blocks: Tensor, units: Tensor) -> Tensor:
    """W (x / rms(x) * norm): x float32 [1, T, K], norm float32 [K] -> [1, T, N]."""
    x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * norm
    return F.linear(quantized_activations(x), _matrix(blocks, units))


def add_linear(x: Tensor, residual: Tensor, blocks: Tensor, units: Tensor) -> Tensor:
    """residual + W x: x float32 [1, T, K], residual [1, T, N] -> [1, T, N]."""
    return residual + F.linear(quantized_activations(x), _matrix(blocks, units))


def swiglu_linear(gate_up: Tensor, residual: Tensor, blocks: Tensor, units: Tensor) -> Tensor:
    """residual + W (silu(gate) * up): gate_up float32 [1, T, 2 K], gate first, residual [1, T, N] -> [1, T, N]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return add_linear(F.silu(gate) * up, residual, blocks, units)


class Int4Weight(nn.Module):
    """One matrix as the operators take it."""

    blocks: Tensor
    units: Tensor

    def __init__(self, blocks: Tensor, units: Tensor) -> None:
        super().__init__()
        self.register_buffer("blocks", blocks)
        self.register_buffer("units", units)

    def arguments(self) -> tuple[Tensor, Tensor]:
        return self.blocks, self.units


class Int4NormLinear(nn.Module):
    """A norm and the product that reads it. forward(x [1, T, K]) -> [1, T, N]."""

    def __init__(self, norm: Tensor, eps: float, weight: Int4Weight) -> None:
        super().__init__()
        self.norm, self.eps, self.weight = nn.Parameter(norm, False), eps, weight

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.adakv.norm_linear(x, self.norm, self.eps, *self.weight.arguments())


class Int4Block(nn.Module):
    """A decoder layer in four operators; same methods as :class:`adakv_model.model.Block`."""

    def __init__(self, qkv: Int4NormLinear, o: Int4Weight, gate_up: Int4NormLinear, down: Int4Weight) -> None:
        super().__init__()
        self.qkv, self.o, self.gate_up, self.down = qkv, o, gate_up, down

    def project(self, x: Tensor) -> Tensor:
        return self.qkv(x)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        x = torch.ops.adakv.add_linear(attended, x, *self.o.arguments())
        return torch.ops.adakv.swiglu_linear(self.gate_up(x), x, *self.down.arguments())
