"""Rows of the Core ML cache as torch operations that convert to an ML Program: quantize, pack, unpack, transform.

Everything here is exact in fp16 where it handles codes: digits, packed elements and levels are small integers or
short binary fractions. Levels are scaled to (-1, 1), level = (2 code - (2^b - 1)) / 2^b, so that a product with a
query cannot overflow, and the stored scale is 2^b times the quantizer's half step (adakv_model/quantizer.py). In a row
with bands of different widths it is the largest of these, and narrower bands' levels take a smaller factor, their gain.
Tensors are channel first: [units, head_dim, tokens].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from adakv_model.quantizer import STEP, hadamard, is_narrow
from adakv_model.tables import RowTables
from export.coreml.layout import RowLayout, Section
from export.coreml.storage import Digits, Storage

SMALLEST = 1e-4  # a peak below this divides as this: still a normal fp16 number


@dataclass(frozen=True)
class RowTransforms:
    """Linear maps of one layer: stored rows are store (x - mean); queries query q; outputs output (sum p row) + mean.

    store: float32 [2 KV, D, D], K heads then V heads; query: float32 [KV, D, D]; output: float32 [1, D, D], of all
    heads. Whatever the maps are, query^T store = 1 / sqrt(D) on the K side and output store = 1 on the V side.
    """

    store: Tensor
    query: Tensor
    output: Tensor


@lru_cache(maxsize=8)
def _hadamard_matrix(size: int) -> Tensor:
    return hadamard(torch.eye(size, dtype=torch.float64)).float()


def row_transforms(rows: RowTables, layer: int) -> RowTransforms:
    """The one place that says how a layer's rows are mapped: K by the tables' transform, V by Hadamard. rows: as the
    plan uses them (`CalibrationTables.for_plan`)."""
    k, q = rows.k_transform[layer].float(), rows.q_transform[layer]
    v = _hadamard_matrix(k.shape[-1]).expand(k.shape)
    return RowTransforms(torch.cat((k, v)), q * (1.0 / math.sqrt(k.shape[-1])), v[:1])


@dataclass(frozen=True)
class Quantized:
    """codes: float [units, D, T], whole numbers; scales: float [units, 1, T], 2^b times the half step."""

    codes: Tensor
    scales: Tensor


def quantize_window(x: Tensor) -> Quantized:
    """8-bit rows by their absolute maximum. x: float [units, D, T], transformed."""
    peak = x.abs().amax(1, keepdim=True)
    codes = torch.floor(x / peak.clamp(min=SMALLEST) * 127.5 + 128.0).clamp(0.0, 255.0)
    return Quantized(codes, peak * (256.0 / 255.0))


def window_levels(codes: Tensor) -> Tensor:
    return codes * (2.0 / 256) - 255.0 / 256


def by_channel(row: RowLayout, field: str) -> Tensor:
    """A field of `Section`, such as bits, for every channel: float32 [units, D, 1]."""
    table = torch.zeros(row.units, row.head_dim, 1)
    for s in row.sections:
        table[s.first_unit : s.first_unit + s.units, s.first_dim : s.first_dim + s.dims] = getattr(s, field)
    return table


class NarrowTiers:
    """Requantizes window rows to every narrow tier at once, by constants [tiers, units, D or 1, 1].

    Works on the window's levels, not on its values: a row's own scale cancels in its codes, so they follow exactly
    from the 8-bit codes. A unit of plain 8 bits inside a narrow tier keeps its codes (its grid is the window's).
    """

    def __init__(self, rows: list[RowLayout]) -> None:
        bits = torch.stack([by_channel(row, "bits") for row in rows])
        wide = torch.tensor([[not is_narrow(b) for b in (r.k_bits, r.v_bits) for _ in range(r.kv_heads)] for r in rows])
        wide = wide.reshape(*wide.shape, 1, 1)
        step = torch.tensor([STEP[int(b)] for b in bits.flatten()]).reshape(bits.shape)
        reach = torch.tensor([[row.reach(side) for side in (0, 1) for _ in range(row.kv_heads)] for row in rows])
        levels = torch.exp2(bits)
        self.any_wide = bool(wide.any())
        self.of_rms = torch.where(wide, 0.0, 1.0 / step)  # code = level * (of_rms / rms + of_one) + levels / 2
        self.of_one = torch.where(wide, 128.0, 0.0)
        self.middle, self.top = levels / 2, levels - 1
        self.scale_of_rms = torch.where(wide, 0.0, reach.reshape(wide.shape))
        self.scale_of_one = torch.where(wide, 1.0, 0.0)

    def __call__(self, window: Tensor, scales: Tensor) -> Quantized:
        """window: levels [units, D, T]; scales: [units, 1, T] -> codes [tiers, units, D, T], scales [.., 1, T]."""
        rms = torch.sqrt((window * window).mean(1, keepdim=True))
        factor = self.of_rms / rms
        scale = rms * self.scale_of_rms
        if self.any_wide:
            factor, scale = factor + self.of_one, scale + self.scale_of_one
        codes = torch.minimum(torch.floor(window * factor + self.middle).clamp(min=0.0), self.top)
        return Quantized(codes, scale * scales)


def pack_row(row: RowLayout, codes: Tensor, scales: Tensor) -> Tensor:
    """Columns [channels, T] of a pool. codes: [units, D, T]; scales: [units, 1, T]."""
    tokens, parts = codes.shape[-1], []
    for s in row.sections:
        part = codes[s.first_unit : s.first_unit + s.units, s.first_dim : s.first_dim + s.dims]
        parts.extend(_pack_section(row.storage, s, part.reshape(-1, tokens)))
    parts.append(scales.reshape(row.units, tokens))
    padding = row.channels - row.used_channels
    if padding:
        parts.append(torch.zeros(padding, tokens))
    return torch.cat(parts)


def _pack_section(storage: Storage, section: Section, codes: Tensor) -> list[Tensor]:
    """[codes, T] -> one [elements, T] a run of digits."""
    runs = storage.runs[section.bits]
    packed, below = [], section.bits
    for run in runs:
        below -= run.width * run.count
        high = torch.floor(codes * 2.0**-below) if below else codes
        packed.append(_pack_run(storage, run, high))
        if below:
            codes = codes - high * 2.0**below
    return packed


def _pack_run(storage: Storage, run: Digits, codes: Tensor) -> Tensor:
    """[codes, T] -> [elements, T]: digit field f of element j is digit j + f * elements, the top field signed."""
    count, fields = storage.run_elements(codes.shape[0], run), storage.payload_bits // run.width
    if run.count == 2:
        high = torch.floor(codes * 2.0**-run.width)
        codes = torch.cat((high, codes - high * 2.0**run.width))
    missing = fields * count - codes.shape[0]
    if missing:
        codes = torch.cat((codes, torch.zeros(missing, codes.shape[1])))
    digits = codes.reshape(fields, count, -1)
    powers, bias = _powers(storage, run.width), torch.zeros(fields, 1, 1)
    bias[-1] = 2.0**storage.payload_bits / 2
    return (digits * powers - bias).sum(0)


def _powers(storage: Storage, width: int) -> Tensor:
    return 2.0 ** (width * torch.arange(storage.payload_bits // width, dtype=torch.float32)).reshape(-1, 1, 1)


def unpack_row(row: RowLayout, pool: Tensor) -> tuple[Tensor, Tensor]:
    """Levels times gain [units, D, slots] and scales [units, 1, slots] of a whole pool [1, channels, 1, slots]."""
    slots = pool.shape[-1]
    sides: dict[int, list[Tensor]] = {}
    for s in row.sections:
        packed = pool[:, s.channel : s.channel + s.elements]
        levels = _unpack_section(row.storage, s, packed).reshape(s.units, s.dims, slots)
        sides.setdefault(s.first_unit, []).append(levels)
    units = [_joined(bands, 1) for bands in sides.values()]
    scales = pool[:, row.scales_channel : row.scales_channel + row.units].reshape(row.units, 1, slots)
    return _joined(units, 0), scales


def _joined(parts: list[Tensor], axis: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=axis)


def _unpack_section(storage: Storage, section: Section, packed: Tensor) -> Tensor:
    """[1, elements, 1, slots] -> [codes, slots]. A level is the sum of its digits' levels by their weight."""
    count = section.units * section.dims
    levels, first, weight = None, 0, section.gain
    for run in storage.runs[section.bits]:
        elements = storage.run_elements(count, run)
        digits = _unpack_run(storage, run, packed[:, first : first + elements], weight)
        for i in range(run.count):
            digit = digits[i * count : (i + 1) * count]
            part = digit * 2.0 ** (-run.width * i) if i else digit
            levels = part if levels is None else levels + part
        weight *= 2.0 ** (-run.width * run.count)
        first += elements
    assert levels is not None
    return levels


def _unpack_run(storage: Storage, run: Digits, packed: Tensor, factor: float) -> Tensor:
    """Levels [fields * elements, slots] of digits, times a factor, where digit f = floor(w / 2^(b f)) - 2^b floor(w /
    2^(b (f + 1))). Digits are exact in fp16, levels too where the factor is a power of two."""
    width, slots = run.width, packed.shape[-1]
    step = 2.0**-width
    if width == storage.payload_bits:  # one signed digit an element
        return (packed * (2.0 * step * factor) + step * factor).reshape(-1, slots)
    powers = _powers(storage, width).unsqueeze(1)  # [fields, 1, 1, 1]
    fields, last = powers.shape[0], torch.zeros(powers.shape[0], 1, 1, 1)
    last[-1] = 1.0  # the top field is stored minus half its range and needs no subtraction
    low = torch.floor(packed * (1.0 / powers))
    high = torch.floor(packed * ((1.0 - last) * step / powers)) * 2.0**width
    levels = (low - high) * (2.0 * step * factor) + (last - (1.0 - step)) * factor
    return levels.reshape(fields * packed.shape[1], slots)
