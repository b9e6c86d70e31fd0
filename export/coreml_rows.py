"""Rows of the Core ML cache as torch operations that convert to an ML Program: quantize, pack, unpack, transform.

Everything here is exact in fp16 where it handles codes: digits, packed elements and levels are small integers or
short binary fractions. Levels are scaled to (-1, 1), level = (2 code - (2^b - 1)) / 2^b, so that a product with a
query cannot overflow, and the stored scale is 2^b times the quantizer's half step (adakv_model/quantizer.py).
Tensors are channel first: [units, head_dim, tokens].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from adakv_model.plan import CachePlan
from adakv_model.quantizer import STEP, ScaleMode, hadamard, half_step
from export.coreml_layout import RowLayout, Section
from export.coreml_storage import Digits, Storage

SMALLEST = 1e-4  # a peak below this divides as this: still a normal fp16 number


@dataclass(frozen=True)
class RowTransforms:
    """Linear maps of one layer: stored rows are store (x - mean); queries query q; outputs output (sum p row) + mean.

    store: float32 [2 KV, D, D], K heads then V heads; query and output: float32 [KV, D, D]. Whatever the maps are,
    query^T store = 1 / sqrt(D) on the K side and output store = 1 on the V side. A first axis of 1 broadcasts.
    """

    store: Tensor
    query: Tensor
    output: Tensor


@lru_cache(maxsize=8)
def _hadamard_matrix(size: int) -> Tensor:
    return hadamard(torch.eye(size, dtype=torch.float64)).float()


def row_transforms(plan: CachePlan, layer: int) -> RowTransforms:
    """The one place that says how a layer's rows are rotated: here the orthonormal Hadamard transform for all."""
    matrix = _hadamard_matrix(plan.head_dim).unsqueeze(0)
    return RowTransforms(store=matrix, query=matrix * (1.0 / math.sqrt(plan.head_dim)), output=matrix)


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


class NarrowTiers:
    """Requantizes window rows to every narrow tier at once; constants [tiers, units, 1, 1] hold the widths.

    Works on the window's levels, not on its values: a row's own scale cancels in its codes, so they follow exactly
    from the 8-bit codes. An 8-bit unit inside a narrow tier keeps its codes (its grid is the window's).
    """

    def __init__(self, plan: CachePlan, tiers: tuple[int, ...], layer: int) -> None:
        widths = torch.tensor(plan.unit_bits[layer][:, :, list(tiers)]).permute(2, 1, 0).flatten(1)  # [tiers, units]
        bits = widths.reshape(len(tiers), 2 * plan.n_kv_heads, 1, 1)
        modes = torch.tensor(plan.scale_modes[layer]).T.reshape(1, -1, 1, 1).expand(bits.shape)
        wide = bits == 8
        step, half = torch.ones(bits.shape), torch.ones(bits.shape)
        for width, mode in {(int(b), int(m)) for b, m in zip(bits.flatten(), modes.flatten(), strict=True) if b != 8}:
            same = (bits == width) & (modes == mode)
            step[same], half[same] = STEP[width], half_step(width, ScaleMode(mode))
        levels = (2.0**bits).float()
        self.any_wide = bool(wide.any())
        self.of_rms = torch.where(wide, 0.0, 1.0 / step)  # code = level * (of_rms / rms + of_one) + levels / 2
        self.of_one = torch.where(wide, 128.0, 0.0)
        self.middle, self.top = levels / 2, levels - 1
        self.scale_of_rms = torch.where(wide, 0.0, half * levels)
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
    tokens, first, parts = codes.shape[-1], 0, []
    for section in row.sections:
        parts.extend(_pack_section(row.storage, section, codes[first : first + section.units].reshape(-1, tokens)))
        first += section.units
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
    """Levels [units, D, slots] and scales [units, 1, slots] of a whole pool [1, channels, 1, slots]."""
    slots = pool.shape[-1]
    sections = []
    for section in row.sections:
        packed = pool[:, section.channel : section.channel + section.elements]
        count = section.units * row.head_dim
        sections.append(
            _unpack_section(row.storage, section, packed, count).reshape(section.units, row.head_dim, slots)
        )
    levels = sections[0] if len(sections) == 1 else torch.cat(sections)
    scales = pool[:, row.scales_channel : row.scales_channel + row.units].reshape(row.units, 1, slots)
    return levels, scales


def _unpack_section(storage: Storage, section: Section, packed: Tensor, count: int) -> Tensor:
    """[1, elements, 1, slots] -> levels [count, slots]. A level is the sum of its digits' levels by their weight."""
    levels, first, weight = None, 0, 1.0
    for run in storage.runs[section.bits]:
        elements = storage.run_elements(count, run)
        digits = _unpack_run(storage, run, packed[:, first : first + elements])
        for i in range(run.count):
            digit = digits[i * count : (i + 1) * count]
            levels = digit if levels is None else levels + digit * weight
            weight *= 2.0**-run.width
        first += elements
    assert levels is not None
    return levels


def _unpack_run(storage: Storage, run: Digits, packed: Tensor) -> Tensor:
    """Levels [fields * elements, slots] of digits: digit f = floor(w / 2^(b f)) - 2^b floor(w / 2^(b (f + 1)))."""
    width, slots = run.width, packed.shape[-1]
    step = 2.0**-width
    if width == storage.payload_bits:  # one signed digit an element
        return (packed * (2.0 * step) + step).reshape(-1, slots)
    powers = _powers(storage, width).unsqueeze(1)  # [fields, 1, 1, 1]
    fields, last = powers.shape[0], torch.zeros(powers.shape[0], 1, 1, 1)
    last[-1] = 1.0  # the top field is stored minus half its range and needs no subtraction
    low = torch.floor(packed * (1.0 / powers)) * (2.0 * step)
    high = torch.floor(packed * ((1.0 - last) * step / powers)) * 2.0
    levels = low - high + (last - (1.0 - step))
    return levels.reshape(fields * packed.shape[1], slots)
