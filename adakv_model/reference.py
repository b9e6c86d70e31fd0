"""Torch reference of the four ``adakv::`` cache operators; ``csrc/`` is tested against these functions.

A step over a chunk of T tokens at positions p .. p + T - 1 calls, in this order,

    depart   features of the tokens that leave the window during the chunk              -> controller -> logits
    assign   tier and slot of each of them, and the rows of every tier once it has left   -> plan
    attend   (each layer) append the chunk, demote the leaving rows, attend
    observe  surprisal, entropy and confidence of the chunk's tokens

Tokens leave as a position that is a multiple of `departure` is appended (``plan.left``). Features of a token are
complete before any chunk in which it can leave begins, if chunks do not cross such a position (`departure` 1: in any
case); so every such chunking of a text gives the same tiers, the same packed bytes and, up to float rounding, the same
logits. All state tensors are updated in place. Positions: 0 is the sink, those from left(p) on are in the window, p
being the newest, others in tiers. A token in the window has row `position % ring` of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from adakv_model.plan import (
    ATTENTION_SUMS,
    ATTENTION_UNIT,
    FIRST_TIER,
    IN_SINK,
    IN_WINDOW,
    OBSERVATIONS,
    SINK,
    WINDOW,
    largest_chunk,
    left,
)
from adakv_model.quantizer import (
    ScaleMode,
    dequantize,
    hadamard,
    has_scale_code,
    pack,
    quantize,
    row_bytes,
    scale_bytes,
    transform,
    unpack,
)

LOG_FREQUENCY, CONFIDENCE, ENTROPY, SURPRISAL, REPEATS = range(len(OBSERVATIONS))
OWN, OWN_SQUARED, RECEIVED = range(len(ATTENTION_SUMS))

#: Features of a departing token as the controller sees them (columns of depart's output).
FEATURES = (
    "log_frequency",
    "confidence",
    "attention_variance",
    "entropy",
    "surprisal",
    "own_attention",
    "repetition",
    "received_attention",
)

VARIANCE_FLOOR, ATTENTION_FLOOR = 1e-6, 1e-5


def check_step(input_pos: int, tokens: int, length: int, context: int, window: int, departure: int) -> None:
    """Raise ValueError unless a chunk of `tokens` may start at `input_pos` of a cache that holds `length`."""
    most = largest_chunk(window, departure)
    if not 1 <= tokens <= most:
        raise ValueError(f"a chunk has 1 to {most} tokens, not {tokens}")
    if input_pos not in (0, length):
        raise ValueError(f"input_pos is {input_pos}: continue at {length} or reset at 0")
    if input_pos + tokens > context:
        raise ValueError(f"context full: position {input_pos + tokens} is past the capacity of {context}")


def depart(
    tokens: Tensor,
    input_pos: Tensor,
    token_log_frequency: Tensor,
    progress: Tensor,
    history: Tensor,
    observed: Tensor,
    attention: Tensor,
    n_attentions: int,
    lag: int,
    window: int,
    departure: int,
) -> Tensor:
    """Features float32 [E, 8] of the tokens that leave the window, and fresh observations of the new ones.

    tokens: int64 [1, T]; progress: int32 [1 + K]; history: int32 [N]; observed: float32 [R, 5]; attention:
    int64 [R, 3], R rows of the ring. E = T + departure - 1, the most that can leave; row j is token left(p - 1) + j,
    zeros past the last. A leaving token of the chunk itself has its frequency and repetition only.
    n_attentions: layers x heads, the number of attention rows summed into an observation.
    """
    p, count, ring = int(input_pos), tokens.shape[-1], observed.shape[0]
    check_step(p, count, int(progress[0]), history.shape[0], window, departure)
    first, end = left(p - 1, window, departure), left(p + count - 1, window, departure)
    held = _positions(first, min(end, p)) % ring
    raw, sums = observed[held], attention[held]  # before new tokens take these rows
    history[p : p + count] = tokens[0].to(torch.int32)
    slots = torch.arange(p, p + count) % ring
    observed[slots], attention[slots] = 0.0, 0
    observed[slots, LOG_FREQUENCY] = token_log_frequency[tokens[0]]
    for i in range(count):
        observed[slots[i], REPEATS] = float((history[: p + i] == history[p + i]).sum())
    fresh = _positions(max(first, p), end) % ring
    features = _features(torch.cat((raw, observed[fresh])), torch.cat((sums, attention[fresh])), n_attentions, lag)
    out = torch.zeros(count + departure - 1, len(FEATURES))
    out[: end - first] = features
    return out


def _positions(first: int, end: int) -> Tensor:
    """int64, first .. end - 1, none if end is not past first."""
    return torch.arange(first, max(first, end))


def _features(raw: Tensor, sums: Tensor, n_attentions: int, lag: int) -> Tensor:
    """float32 [n, 8] from rows of `observed` [n, 5] and of `attention` [n, 3]."""
    means = sums.double() * ATTENTION_UNIT / n_attentions
    own = means[:, OWN].float()
    variance = (means[:, OWN_SQUARED].float() - own * own).clamp(min=0)
    received = (means[:, RECEIVED] / max(lag, 1)).float()
    columns = [
        raw[:, LOG_FREQUENCY],
        raw[:, CONFIDENCE],
        torch.log(variance + VARIANCE_FLOOR),
        raw[:, ENTROPY],
        raw[:, SURPRISAL],
        torch.log(own + ATTENTION_FLOOR),
        torch.log1p(raw[:, REPEATS]),
        torch.log(received + ATTENTION_FLOOR),
    ]
    return torch.stack(columns, dim=1)


def spill_order(wanted: int, n_tiers: int) -> list[int]:
    """All tiers, nearest to the wanted one first, narrower before wider."""
    near = [tier for distance in range(n_tiers) for tier in (wanted - distance, wanted + distance)]
    return list(dict.fromkeys(tier for tier in near if 0 <= tier < n_tiers))


def nearest_tier_with_room(wanted: int, fill: list[int], capacities: list[int]) -> int:
    """The wanted tier, else the nearest one with a free slot, narrower before wider."""
    for tier in spill_order(wanted, len(capacities)):
        if fill[tier] < capacities[tier]:
            return tier
    raise ValueError("every tier is full: the plan does not hold the context")


def assign(
    logits: Tensor,
    input_pos: Tensor,
    capacities: Tensor,
    progress: Tensor,
    tiers: Tensor,
    window: int,
    departure: int,
) -> Tensor:
    """Give each departing token a tier and a slot.

    logits: float32 [E, K], E = T + departure - 1, row j for token left(p - 1) + j; capacities: int32 [K]; progress:
    int32 [1 + K] (length, then rows used in each tier); tiers: uint8 [N]. Returns plan int32 [E, 2 + K]: tier and
    slot of the token, then the rows of every tier once it has left; past the last, -1, -1 and the final counts.
    """
    p, count = int(input_pos), logits.shape[0] - departure + 1
    check_step(p, count, int(progress[0]), tiers.shape[0], window, departure)
    first, end = left(p - 1, window, departure), left(p + count - 1, window, departure)
    room = capacities.tolist()
    fill = [0] * len(room) if p == 0 else progress[1:].tolist()
    tiers[p : p + count] = IN_WINDOW
    if p == 0:
        tiers[0] = IN_SINK
    rows = []
    for j, wanted in enumerate(logits[: end - first].argmax(1).tolist()):
        tier = nearest_tier_with_room(wanted, fill, room)
        slot = fill[tier]
        fill[tier] += 1
        tiers[first + j] = tier
        rows.append([tier, slot, *fill])
    rows += [[-1, -1, *fill]] * (logits.shape[0] - len(rows))
    progress.copy_(torch.tensor([p + count, *fill], dtype=torch.int32))
    return torch.tensor(rows, dtype=torch.int32)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding, half-split layout. x: [T, heads, D]; cos, sin: [T, D / 2]."""
    half = x.shape[-1] // 2
    a, b, c, s = x[..., :half], x[..., half:], cos.unsqueeze(1), sin.unsqueeze(1)
    return torch.cat((a * c - b * s, b * c + a * s), dim=-1)


class UnitView:
    """Rows of one unit inside a layer's packed buffer. table: int [2 + K, 5]; cache: uint8 [bytes]."""

    def __init__(self, table: Tensor, cache: Tensor, head_dim: int) -> None:
        self.table, self.cache, self.head_dim = table.tolist(), cache, head_dim

    def _blocks(self, segment: int) -> tuple[Tensor, Tensor]:
        """The segment's packed codes uint8 [rows, bytes] and scales [rows] (uint8 or float16), as views."""
        bits, rows, codes_at, scales_at, mode = self.table[segment]
        width = row_bytes(bits, self.head_dim)
        codes = self.cache[codes_at : codes_at + rows * width].view(rows, width)
        scales = self.cache[scales_at : scales_at + rows * scale_bytes(bits, ScaleMode(mode))]
        return codes, scales if has_scale_code(bits, ScaleMode(mode)) else scales.view(torch.float16)

    def read(self, segment: int, rows: Tensor) -> Tensor:
        """Dequantized rows float32 [len(rows), D]."""
        bits, mode = self.table[segment][0], ScaleMode(self.table[segment][4])
        codes, scales = self._blocks(segment)
        return dequantize(unpack(codes[rows], bits, self.head_dim), scales[rows], bits, mode)

    def write(self, segment: int, rows: Tensor, x: Tensor) -> None:
        """Quantize x float32 [len(rows), D] into the given rows."""
        bits, mode = self.table[segment][0], ScaleMode(self.table[segment][4])
        codes, scales = self._blocks(segment)
        new_codes, new_scales = quantize(x, bits, mode)
        codes[rows] = pack(new_codes, bits)
        scales[rows] = new_scales

    def demote(self, window_row: int, tier: int, slot: int) -> None:
        """Move one window row into a tier: a copy where the widths agree, else requantized."""
        segment, row = FIRST_TIER + tier, torch.tensor([slot])
        source = torch.tensor([window_row])
        if self.table[segment][0] != self.table[WINDOW][0]:
            self.write(segment, row, self.read(WINDOW, source))
            return
        for target, origin in zip(self._blocks(segment), self._blocks(WINDOW), strict=True):
            target[row] = origin[source]

    def as_window(self, x: Tensor) -> Tensor:
        """x as the window would return it."""
        bits = self.table[WINDOW][0]
        return dequantize(*quantize(x, bits), bits)


@dataclass(frozen=True)
class _Step:
    """Who sees what during a chunk of T tokens at position p.

    first, end: tokens first .. end - 1 leave. used: rows of every tier at the end. mask: bool [T, rows], rows ordered
    sink, tiers, old window, chunk (position 0 is the sink, not a chunk row). old, new: positions of the last two.
    """

    p: int
    first: int
    end: int
    used: list[int]
    mask: Tensor
    old: Tensor
    new: Tensor

    @classmethod
    def of(cls, plan: Tensor, p: int, count: int, window: int, departure: int) -> _Step:
        first, *lefts = (left(x, window, departure) for x in range(p - 1, p + count))
        counts = torch.cat((plan[:1, 2:], plan[:, 2:]))  # row n: rows of every tier once n of the tokens have left
        if lefts[-1] > first:
            counts[0, plan[0, 0]] -= 1
        oldest = torch.tensor(lefts).unsqueeze(1)  # [T, 1]
        seen = counts[oldest[:, 0] - first]  # [T, K]
        used = counts[lefts[-1] - first].tolist()
        tiers = [torch.arange(n) < seen[:, k : k + 1] for k, n in enumerate(used)]
        old, new = _positions(first, p), _positions(max(1, p), p + count)
        recent, query = torch.cat((old, new)), torch.arange(p, p + count).unsqueeze(1)
        sink = torch.ones(count, 1, dtype=torch.bool)
        mask = torch.cat([sink, *tiers, (recent <= query) & (recent >= oldest)], dim=1)
        return cls(p, first, lefts[-1], used, mask, old, new)


def attend(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    plan: Tensor,
    input_pos: Tensor,
    k_mean: Tensor,
    v_mean: Tensor,
    k_transform: Tensor,
    q_transform: Tensor,
    layout: Tensor,
    cache: Tensor,
    attention: Tensor,
    lag: int,
    window: int,
    departure: int,
) -> Tensor:
    """Append a chunk, demote the rows that leave the window, attend; returns float32 [1, T, H D].

    qkv: float32 [1, T, (H + 2 KV) D], before RoPE; cos, sin: float32 [N, D / 2]; plan: from :func:`assign`;
    k_mean, v_mean: float32 [KV, D]; k_transform, q_transform: float32 [KV, D, D], one the inverse transpose of the
    other, so that <q_transform q, k_transform k> = <q, k>; layout: int32 [2 KV, 2 + K, 5]; cache: uint8 [layer
    bytes]; attention: int64 [R, 3], updated if lag >= 0. The K mean leaves every key, which only shifts all
    logits of a query alike, so it never returns; the V mean returns once in the output. V's transform is the
    Hadamard transform.
    """
    p, (kv_heads, head_dim), count = int(input_pos), k_mean.shape, qkv.shape[1]
    n_heads = qkv.shape[2] // head_dim - 2 * kv_heads
    group = n_heads // kv_heads
    q, k, v = qkv[0].reshape(count, -1, head_dim).split([n_heads, kv_heads, kv_heads], dim=1)
    q = apply_rope(q, cos[p : p + count], sin[p : p + count]).reshape(count, kv_heads, group, head_dim)
    q = transform(q, q_transform.unsqueeze(1)).flatten(1, 2) * (1.0 / math.sqrt(head_dim))
    k = transform(apply_rope(k, cos[p : p + count], sin[p : p + count]) - k_mean, k_transform)
    v = hadamard(v - v_mean)
    step = _Step.of(plan, p, count, window, departure)
    outputs, probabilities = [], []
    for h in range(kv_heads):
        rows = [
            _exchange(UnitView(layout[2 * h + side], cache, head_dim), x[:, h], plan, step)
            for side, x in enumerate((k, v))
        ]
        scores = torch.einsum("tgd,nd->tgn", q[:, h * group : (h + 1) * group], rows[0])
        probability = scores.masked_fill(~step.mask.unsqueeze(1), -math.inf).softmax(-1)
        outputs.append(hadamard(torch.einsum("tgn,nd->tgd", probability, rows[1])) + v_mean[h])
        probabilities.append(probability)
    if lag >= 0:
        recent = torch.cat(probabilities, dim=1)[..., 1 + sum(step.used) :]
        _record_attention(attention, recent, torch.cat((step.old, step.new)), p, lag)
    return torch.cat(outputs, dim=1).reshape(1, count, n_heads * head_dim)


def _exchange(unit: UnitView, x: Tensor, plan: Tensor, step: _Step) -> Tensor:
    """Demote, store the chunk's rows x [T, D], and return every row the chunk may read [rows, D]."""
    ring, new, leaving = unit.table[WINDOW][1], step.new, range(step.first, step.end)
    places = plan[: len(leaving), :2].tolist()
    fresh = x[-len(new) :] if len(new) else x[:0]
    recent = [unit.read(WINDOW, step.old % ring), unit.as_window(fresh)]
    for position, (tier, slot) in zip(leaving, places, strict=True):
        if position < step.p:  # before new tokens take its row
            unit.demote(position % ring, tier, slot)
    if step.p == 0:
        unit.write(SINK, torch.tensor([0]), x[:1])
    unit.write(WINDOW, new % ring, fresh)
    for position, (tier, slot) in zip(leaving, places, strict=True):
        if position >= step.p:
            unit.demote(position % ring, tier, slot)
    tiers = [unit.read(FIRST_TIER + k, torch.arange(n)) for k, n in enumerate(step.used)]
    return torch.cat([unit.read(SINK, torch.tensor([0])), *tiers, *recent])


def _record_attention(attention: Tensor, recent: Tensor, positions: Tensor, p: int, lag: int) -> None:
    """Add what each recent token pays to itself and receives. recent: [T, H, rows]; positions: [rows]."""
    age = torch.arange(p, p + recent.shape[0]).unsqueeze(1) - positions
    own, received = (age == 0).unsqueeze(1), ((age >= 1) & (age <= lag)).unsqueeze(1)
    slots = positions % attention.shape[0]
    for column, values in ((OWN, recent * own), (OWN_SQUARED, recent * recent * own), (RECEIVED, recent * received)):
        fixed = torch.round(values.double() / ATTENTION_UNIT).long().sum((0, 1))
        attention[:, column].index_add_(0, slots, fixed)


def observe(logits: Tensor, tokens: Tensor, input_pos: Tensor, observed: Tensor, last_logits: Tensor) -> Tensor:
    """Record how well each token of the chunk was predicted; keep the last logits for the next chunk.

    logits: float32 [1, T, V]; last_logits: float32 [V]. Returns surprisal float32 [T], 0 for position 0.
    """
    p, count, ring = int(input_pos), tokens.shape[-1], observed.shape[0]
    previous = torch.cat((last_logits.unsqueeze(0), logits[0, :-1]))
    log_p = previous.log_softmax(-1)
    surprisal = -log_p.gather(1, tokens[0].unsqueeze(1))[:, 0]
    values = torch.stack((log_p.amax(-1).exp(), -(log_p.exp() * log_p).sum(-1), surprisal), dim=1)
    if p == 0:
        values[0] = 0.0
    slots = torch.arange(p, p + count) % ring
    observed[slots, CONFIDENCE : SURPRISAL + 1] = values
    last_logits.copy_(logits[0, -1])
    return values[:, 2].clone()
