"""Torch reference of ``adakv::attend``: the definition of what the kernels of ``csrc/`` compute, to the last bit.

Rows are read as integers. A query becomes int8, with a scale for each band of channels; its score with a row is an
exact integer product for each band, a float factor for each band and the row's scale. The softmax of a query is a sum
of *parts*, joined in order: the window ring with the sink, then every ``PART_ROWS`` rows of every tier. In a part, the
weights of ``GROUP_ROWS`` V rows (softmax times row scale) become integers 0 .. 127 with one scale, and the sum over
these rows is exact again. What remains in float is done elementwise in the order written here, and sums of floats fold
sixteen lanes.

Rows of 16 bits are multiplied in float, as int8 queries would be the larger error. Core ML (``ScaleMode.HALF``) has no
integer products: its plans are attended in float.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from adakv_model.packing import BLOCK, Side, pack_blocks, padded, unpack_blocks
from adakv_model.plan import ATTENTION_UNIT, FIRST_TIER, PART_ROWS, SINK, WINDOW
from adakv_model.quantizer import (
    UNIT_16,
    ScaleMode,
    dequantize,
    hadamard,
    half_step,
    has_scale_code,
    is_narrow,
    n_bands,
    quantize,
    row_bytes,
    scale_bytes,
    scale_value,
    split_bands,
    transform,
)
from adakv_model.reference import OWN, OWN_SQUARED, RECEIVED
from adakv_model.window import left

GROUP_ROWS = 32  # rows whose V weights share a scale
LANES = 16  # partial sums of a reduction
TOP = 127.0  # largest int8 code
SMALLEST = 1e-30  # what is not larger becomes 0: 127 divided by it must be finite


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding, half-split layout. x: [T, heads, D]; cos, sin: [T, D / 2]."""
    half = x.shape[-1] // 2
    a, b, c, s = x[..., :half], x[..., half:], cos.unsqueeze(1), sin.unsqueeze(1)
    return torch.cat((a * c - b * s, b * c + a * s), dim=-1)


class UnitView:
    """Rows of one unit inside a layer's packed buffer. table: int [2 + K, 5]; cache: uint8 [bytes]."""

    def __init__(self, table: Tensor, cache: Tensor, head_dim: int, side: Side) -> None:
        self.table, self.cache, self.head_dim, self.side = table.tolist(), cache, head_dim, side

    def bits(self, segment: int) -> int:
        return self.table[segment][0]

    def mode(self, segment: int) -> ScaleMode:
        return ScaleMode(self.table[segment][4])

    def _bytes(self, segment: int) -> Tensor:
        """The segment's codes, whole blocks: uint8 view."""
        bits, rows, at, _, _ = self.table[segment]
        return self.cache[at : at + (rows if segment == SINK else padded(rows)) * row_bytes(bits, self.head_dim)]

    def scales(self, segment: int) -> Tensor:
        """The segment's scales as stored [rows], uint8 or float16, as a view."""
        bits, rows, _, at, mode = self.table[segment]
        scales = self.cache[at : at + rows * scale_bytes(bits, ScaleMode(mode))]
        return scales if has_scale_code(bits, ScaleMode(mode)) else scales.view(torch.float16)

    def codes(self, segment: int) -> Tensor:
        """All codes of the segment [rows, D]."""
        packed, bits = self._bytes(segment), self.bits(segment)
        if segment == SINK:  # a single row is no block
            return unpack_blocks(packed.repeat(BLOCK), bits, self.head_dim, Side.VALUE)[:1]
        return unpack_blocks(packed, bits, self.head_dim, self.side)[: self.table[segment][1]]

    def read(self, segment: int, rows: Tensor) -> Tensor:
        """Dequantized rows float32 [len(rows), D]."""
        return dequantize(self.codes(segment)[rows], self.scales(segment)[rows], self.bits(segment), self.mode(segment))

    def write(self, segment: int, rows: Tensor, x: Tensor) -> None:
        """Quantize x float32 [len(rows), D] into the given rows."""
        self._store(segment, rows, *quantize(x, self.bits(segment), self.mode(segment)))

    def _store(self, segment: int, rows: Tensor, codes: Tensor, scales: Tensor) -> None:
        packed, bits = self._bytes(segment), self.bits(segment)
        if segment == SINK:
            packed.copy_(pack_blocks(codes.repeat(BLOCK, 1), bits, Side.VALUE)[: packed.numel()])
        else:  # the blocks that hold these rows
            first, last = int(rows.min()) // BLOCK, int(rows.max()) // BLOCK
            size = BLOCK * row_bytes(bits, self.head_dim)
            blocks = packed[first * size : (last + 1) * size]
            held = unpack_blocks(blocks, bits, self.head_dim, self.side)
            held[rows - first * BLOCK] = codes.to(held.dtype)
            blocks.copy_(pack_blocks(held, bits, self.side))
        self.scales(segment)[rows] = scales

    def demote(self, window_rows: Tensor, tier: int, slots: Tensor) -> None:
        """Move window rows into a tier: their codes where the widths agree, else requantized."""
        segment = FIRST_TIER + tier
        if self.bits(segment) == self.bits(WINDOW):
            self._store(segment, slots, self.codes(WINDOW)[window_rows], self.scales(WINDOW)[window_rows])
        else:
            self.write(segment, slots, self.read(WINDOW, window_rows))


def fast_exp(x: Tensor) -> Tensor:
    """exp(x) for x <= 88 to about 2 ulp, 0 below -87: fast_exp of csrc/fast_exp.h, operation for operation."""
    clamped = torch.where(x < -87.0, torch.full_like(x, -87.0), x)
    shifted = clamped * 1.44269504 + 12582912.0
    n = shifted - 12582912.0
    r = (clamped - n * 0.693359375) + n * 2.12194440e-4
    e = torch.full_like(r, 1.0 / 5040.0)
    for term in (1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0):
        e = e * r + term
    power = ((shifted.view(torch.int32) - (0x4B400000 - 127)) << 23).view(torch.float32)
    return torch.where(x < -87.0, torch.zeros_like(x), e * power)


def reciprocal(peak: Tensor) -> Tensor:
    """127 / peak, or 0. A Python number over a tensor would be rounded twice."""
    return torch.where(peak > SMALLEST, torch.full_like(peak, TOP) / peak, torch.zeros_like(peak))


def lane_sum(x: Tensor) -> Tensor:
    """Sum over the last axis: element i is added to lane i % 16 in order, then the lanes are folded in halves."""
    rows = torch.nn.functional.pad(x, (0, -x.shape[-1] % LANES)).unflatten(-1, (-1, LANES))
    total = torch.zeros_like(rows[..., 0, :])
    for i in range(rows.shape[-2]):
        total = total + rows[..., i, :]
    while total.shape[-1] > 1:
        half = total.shape[-1] // 2
        total = total[..., :half] + total[..., half:]
    return total[..., 0]


@dataclass(frozen=True)
class Queries:
    """Queries of one kv head, transformed: float32 [n, D]; as int8 codes (held in floats), scale and sum by band."""

    values: Tensor
    codes: Tensor
    scales: Tensor  # [n, bands]
    sums: Tensor  # [n, bands]

    @classmethod
    def of(cls, x: Tensor) -> Queries:
        bands = x.unflatten(-1, (n_bands(x.shape[-1]), -1))
        peak = bands.abs().amax(-1)
        inverse = reciprocal(peak)
        codes = torch.round(bands * inverse.unsqueeze(-1))
        return cls(x, codes.flatten(-2), peak / TOP, codes.sum(-1))


def level_factor(bits: int, width: int, mode: ScaleMode) -> float:
    """What odd levels of a band are multiplied by, besides the row's scale."""
    if not is_narrow(bits):
        return UNIT_16 if bits == 16 else 1.0
    return float(torch.tensor(half_step(width, mode), dtype=torch.float32))


def score(unit: UnitView, segment: int, rows: slice, queries: Queries) -> Tensor:
    """<query, row> float32 [n, rows] of K rows."""
    bits, mode, dim = unit.bits(segment), unit.mode(segment), unit.head_dim
    codes, scales = unit.codes(segment)[rows].float(), scale_value(unit.scales(segment)[rows])
    if mode & ScaleMode.HALF:
        return queries.values @ dequantize(codes, unit.scales(segment)[rows], bits, mode).T
    if bits == 16:
        levels, total = 2 * codes - 65535, torch.zeros(len(queries.values), len(codes))
        for c in range(dim):
            total = total + queries.values[:, c : c + 1] * levels[:, c]
        return total * (scales * UNIT_16)
    bands = n_bands(dim)
    products = torch.einsum("nbc,rbc->bnr", queries.codes.unflatten(1, (bands, -1)), codes.unflatten(1, (bands, -1)))
    units = [queries.scales[:, b] * level_factor(bits, w, mode) for b, w in enumerate(split_bands(bits, dim))]
    start = torch.zeros_like(units[0])
    for b, width in enumerate(split_bands(bits, dim)):
        start = start - units[b] * (((1 << width) - 1) * queries.sums[:, b])
    total = start.unsqueeze(1).expand(-1, len(codes))
    for b in range(bands):
        total = total + products[b] * (2.0 * units[b]).unsqueeze(1)
    return total * scales


def accumulate(unit: UnitView, segment: int, rows: slice, weights: Tensor) -> Tensor:
    """weights float32 [n, rows], not negative, times V rows: float32 [n, D]."""
    bits, mode = unit.bits(segment), unit.mode(segment)
    codes, scales = unit.codes(segment)[rows].float(), scale_value(unit.scales(segment)[rows])
    if mode & ScaleMode.HALF:
        return weights @ dequantize(codes, unit.scales(segment)[rows], bits, mode)
    total = torch.zeros(len(weights), unit.head_dim)
    if bits == 16:
        levels = 2 * codes - 65535
        for r in range(len(codes)):
            total = total + (weights[:, r] * (scales[r] * UNIT_16)).unsqueeze(1) * levels[r]
        return total
    factor, offset = level_factor(bits, bits, mode), torch.zeros(len(weights))
    for first in range(0, len(codes), GROUP_ROWS):
        group = slice(first, first + GROUP_ROWS)
        w = weights[:, group] * scales[group]
        peak = w.amax(1)
        inverse = reciprocal(peak)
        integers = torch.round(w * inverse.unsqueeze(1))
        scale = (peak * (1.0 / 127.0)) * factor
        offset = offset - scale * (((1 << bits) - 1) * integers.sum(1))
        total = total + (integers @ codes[group]) * (2.0 * scale).unsqueeze(1)
    return total + offset.unsqueeze(1)


@dataclass
class Sums:
    """Unnormalised softmax sums of n queries: peak and total [n], acc [n, D]."""

    peak: Tensor
    total: Tensor
    acc: Tensor

    def join(self, other: Sums) -> Sums:
        peak = torch.maximum(self.peak, other.peak)
        keep, take = fast_exp(self.peak - peak), fast_exp(other.peak - peak)
        acc = self.acc * keep.unsqueeze(1) + other.acc * take.unsqueeze(1)
        return Sums(peak, self.total * keep + other.total * take, acc)


def tier_sums(keys: UnitView, values: UnitView, segment: int, rows: slice, queries: Queries) -> Sums:
    """Over rows of a tier, which all queries see."""
    scores = score(keys, segment, rows, queries)
    peak = scores.amax(1)
    weights = fast_exp(scores - peak.unsqueeze(1))
    return Sums(peak, lane_sum(weights), accumulate(values, segment, rows, weights))


def recent_sums(keys: UnitView, values: UnitView, seen: Tensor, queries: Queries) -> tuple[Sums, Tensor]:
    """Over the window ring and the sink, and the exponentials [n, ring + 1], the sink's last. seen: bool [n, ring]."""
    ring = slice(0, seen.shape[1])
    sink_key, sink_value = (u.read(SINK, torch.tensor([0]))[0] for u in (keys, values))
    sink = torch.zeros(len(seen))
    for c in range(keys.head_dim):
        sink = sink + queries.values[:, c] * sink_key[c]
    scores = score(keys, WINDOW, ring, queries).masked_fill(~seen, -math.inf)
    scores = torch.cat((scores, sink.unsqueeze(1)), dim=1)
    peak = scores.amax(1)
    weights = fast_exp(scores - peak.unsqueeze(1))
    acc = accumulate(values, WINDOW, ring, weights[:, :-1]) + sink_value * weights[:, -1:]
    return Sums(peak, lane_sum(weights), acc), weights


def attend(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    plan: Tensor,
    input_pos: Tensor,
    k_mean: Tensor,
    v_mean: Tensor,
    k_columns: Tensor,
    q_columns: Tensor,
    layout: Tensor,
    cache: Tensor,
    attention: Tensor,
    workspace: Tensor,
    lag: int,
    window: int,
    departure: int,
) -> Tensor:
    """Append a chunk, demote the rows that leave the window, attend; returns float32 [1, T, H D].

    qkv: float32 [1, T, (H + 2 KV) D], before RoPE; cos, sin: float32 [N, D / 2]; plan: from ``reference.assign``;
    k_mean, v_mean: float32 [KV, D]; k_columns, q_columns: float32 [KV, D, D], transposed K and query transforms, one
    the inverse transpose of the other but for the 1 / sqrt(D) in the queries'; layout: int32 [2 KV, 2 + K, 5]; cache:
    uint8 [layer bytes]; attention: int64 [ring, 3], updated if lag >= 0; workspace: uint8, scratch of the kernels, not
    used here. The K mean leaves every key, which only shifts all logits of a query alike, so it never returns; the V
    mean returns once in the output. V's transform is the Hadamard transform.
    """
    p, (kv_heads, head_dim), count = int(input_pos), k_mean.shape, qkv.shape[1]
    n_heads = qkv.shape[2] // head_dim - 2 * kv_heads
    q, k, v = qkv[0].reshape(count, -1, head_dim).split([n_heads, kv_heads, kv_heads], dim=1)
    at = slice(p, p + count)
    q = apply_rope(q, cos[at], sin[at]).reshape(count, kv_heads, -1, head_dim)
    q = transform(q, q_columns.transpose(-1, -2).unsqueeze(1))  # [T, KV, G, D]
    k = transform(apply_rope(k, cos[at], sin[at]) - k_mean, k_columns.transpose(-1, -2))
    v = hadamard(v - v_mean)
    outputs, start = [], p
    while start < p + count:  # between departures
        end = min(p + count, (start // departure + 1) * departure)
        part = slice(start - p, end - p)
        step = _Step(plan, p, start, end, window, departure, layout, cache)
        heads = [step.head(h, q[part, h], (k[part, h], v[part, h]), attention, lag) for h in range(kv_heads)]
        outputs.append(torch.stack(heads, dim=1) + v_mean.unsqueeze(1))
        start = end
    return torch.cat(outputs).reshape(1, count, n_heads * head_dim)


class _Step:
    """Tokens start .. end - 1 of a chunk that begins at p, none of which but the first lets others leave."""

    def __init__(
        self, plan: Tensor, p: int, start: int, end: int, window: int, departure: int, layout: Tensor, cache: Tensor
    ) -> None:
        self.start, self.end, self.layout, self.cache = start, end, layout, cache
        self.ring = int(layout[0, WINDOW, 1])
        first = left(p - 1, window, departure)
        before, self.oldest = left(start - 1, window, departure), left(start, window, departure)
        rows = plan.tolist()
        self.leaving = [(first + i, *rows[i][:2]) for i in range(before - first, self.oldest - first)]
        self.used = list(rows[max(self.oldest - first - 1, 0)][2:])
        if self.oldest == first and rows[0][0] >= 0:
            self.used[rows[0][0]] -= 1  # the row counts a token that leaves later in the chunk

    def head(self, h: int, q: Tensor, new: tuple[Tensor, Tensor], attention: Tensor, lag: int) -> Tensor:
        """Attention of queries q [n, G, D] of kv head h, without the V mean: float32 [n, G, D]."""
        keys, values = (UnitView(self.layout[2 * h + side], self.cache, q.shape[-1], side) for side in Side)
        positions = torch.arange(self.start, self.end)
        for unit, x in zip((keys, values), new, strict=True):
            for tier in {tier for _, tier, _ in self.leaving}:
                moves = torch.tensor([(t % self.ring, slot) for t, to, slot in self.leaving if to == tier])
                unit.demote(moves[:, 0], tier, moves[:, 1])
            if self.start == 0:
                unit.write(SINK, torch.tensor([0]), x[:1])
            recent = positions[positions > 0]
            if len(recent):
                unit.write(WINDOW, recent % self.ring, x[len(x) - len(recent) :])
        queries = Queries.of(q.flatten(0, 1))
        held = torch.arange(max(self.oldest, self.end - self.ring), self.end)  # positions in the ring, the sink apart
        held = held[held > 0]
        seen = torch.zeros(len(positions), self.ring, dtype=torch.bool)
        seen[:, held % self.ring] = held <= positions.unsqueeze(1)
        sums, weights = recent_sums(keys, values, seen.repeat_interleave(q.shape[1], 0), queries)
        recent_peak = sums.peak
        for tier, used in enumerate(self.used):
            for row in range(0, used, PART_ROWS):
                rows = slice(row, min(row + PART_ROWS, used))
                sums = sums.join(tier_sums(keys, values, FIRST_TIER + tier, rows, queries))
        if lag >= 0:
            probability = weights[:, :-1] * (fast_exp(recent_peak - sums.peak) / sums.total).unsqueeze(1)
            self._record(attention, probability.unflatten(0, q.shape[:2])[..., held % self.ring], held, positions, lag)
        return hadamard(sums.acc / sums.total.unsqueeze(1)).reshape(q.shape)

    def _record(self, attention: Tensor, recent: Tensor, held: Tensor, positions: Tensor, lag: int) -> None:
        """Add what each recent token pays to itself and receives. recent: [n, G, rows], of the positions `held`."""
        age = positions.unsqueeze(1) - held
        own, received = (age == 0).unsqueeze(1), ((age >= 1) & (age <= lag)).unsqueeze(1)
        slots = held % attention.shape[0]
        for column, values in (
            (OWN, recent * own),
            (OWN_SQUARED, recent * recent * own),
            (RECEIVED, recent * received),
        ):
            fixed = torch.round(values.double() / ATTENTION_UNIT).long().sum((0, 1))
            attention[:, column].index_add_(0, slots, fixed)
