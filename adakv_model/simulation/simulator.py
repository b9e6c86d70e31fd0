"""The quantized cache in floating point: batched, exact in what it decides and reads, fast enough to evaluate.

A :class:`SimulatedCache` holds every row as the packed cache would read it back, and follows the same order of
events as ``reference.py``: sink, window, one decision a token from features that were known before the chunk in which
its block leaves, spill.
It differs from the packed cache by float rounding only (``test_simulator.py`` compares tiers and outputs). How rows
lose precision is a :class:`RowFormat`, so that other quantizers run under the same attention (``baselines.py``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from adakv_model.attention import apply_rope
from adakv_model.config import LlamaConfig
from adakv_model.model import rope_tables
from adakv_model.reference import ATTENTION_FLOOR, VARIANCE_FLOOR, spill_order
from adakv_model.window import left, oldest

#: features float32 [B, n, 8] and positions int64 [n] of leaving tokens -> tier each of them wants, int64 [B, n].
Decide = Callable[[Tensor, Tensor], Tensor]


class RowFormat(Protocol):
    """How K and V rows are stored. side: 0 for K, 1 for V; rows are float32 [B, KV, T, D]."""

    def queries(self, layer: int, q: Tensor) -> Tensor:
        """q [B, KV, n, D] after RoPE, already divided by sqrt(D) -> the form that stored keys are multiplied by."""
        ...

    def stored(self, layer: int, side: int, x: Tensor) -> Tensor:
        """The form in which rows are quantized (K after RoPE)."""
        ...

    def sink(self, layer: int, side: int, x: Tensor) -> Tensor:
        """Position 0 as it is read back."""
        ...

    def window(self, layer: int, side: int, x: Tensor) -> Tensor:
        """Rows as they are read back while in the window."""
        ...

    def demoted(self, layer: int, side: int, x: Tensor, tiers: Tensor) -> Tensor:
        """Window rows as they are read back from their tiers, int64 [B, T]."""
        ...

    def output(self, layer: int, x: Tensor) -> Tensor:
        """Attention-weighted sums of stored V [B, KV, n, D] -> the model's own form."""
        ...


class SimulatedCache(nn.Module):
    """A ``KVCache`` over `rows`; batch of any size, all sequences at the same position.

    window: newest tokens read through `rows.window` (0: rows are demoted at once). departure: they leave it in blocks,
    see ``plan.left``. capacities: rows of each tier. decide: None if there is one tier. With `decide`, chunks are at
    most window - lag tokens, or cross no multiple of `departure` if that is more than 1.
    """

    cos: Tensor
    sin: Tensor

    def __init__(
        self,
        config: LlamaConfig,
        rows: RowFormat,
        *,
        context: int,
        window: int,
        lag: int,
        capacities: tuple[int, ...],
        token_log_frequency: Tensor,
        decide: Decide | None = None,
        keeps_sink: bool = True,
        departure: int = 1,
    ) -> None:
        super().__init__()
        self.config, self.rows, self.decide = config, rows, decide
        self.context, self.window_size, self.lag, self.keeps_sink = context, window, lag, keeps_sink
        self.departure = departure
        self.capacities = torch.tensor(capacities)
        self.order = torch.tensor([spill_order(k, len(capacities)) for k in range(len(capacities))])
        self.log_frequency = token_log_frequency.float()
        cos, sin = rope_tables(config, context)
        self.register_buffer("cos", cos)
        self.register_buffer("sin", sin)
        self.reset(0)

    def reset(self, batch: int) -> None:
        """Forget everything; room for `batch` sequences."""
        c, n = self.config, self.context
        self.length, self.batch = 0, batch
        shape = (batch, c.n_kv_heads, n, c.head_dim)
        self.far = [[torch.empty(shape) for _ in range(2)] for _ in range(c.n_layers)]
        self.near: list[list[Tensor | None]] = [[None, None] for _ in range(c.n_layers)]
        self.tokens = torch.zeros(batch, n, dtype=torch.int64)
        self.tiers = torch.zeros(batch, n, dtype=torch.int64)
        self.fill = torch.zeros(batch, len(self.capacities), dtype=torch.int64)
        self.seen = torch.zeros(4, batch, n)  # confidence, entropy, surprisal, repeats
        self.greedy = torch.zeros(batch, n, dtype=torch.bool)
        self.sums = torch.zeros(3, batch, n)  # attention: own, own squared, received
        self.last_logits: Tensor | None = None

    def repeat(self, times: int) -> None:
        """Make `times` copies of every sequence, copies of one beside each other."""
        self.batch *= times
        self.far = [[x.repeat_interleave(times, 0) for x in pair] for pair in self.far]
        self.near = [[None if x is None else x.repeat_interleave(times, 0) for x in pair] for pair in self.near]
        for name in ("tokens", "tiers", "fill", "greedy"):
            setattr(self, name, getattr(self, name).repeat_interleave(times, 0))
        self.seen, self.sums = (x.repeat_interleave(times, 1) for x in (self.seen, self.sums))
        if self.last_logits is not None:
            self.last_logits = self.last_logits.repeat_interleave(times, 0)

    def begin(self, tokens: Tensor, input_pos: Tensor) -> Tensor:
        p, (batch, count) = int(input_pos), tokens.shape
        if p == 0:
            self.reset(batch)
        if p != self.length or p + count > self.context or batch != self.batch:
            raise ValueError(f"{batch} x {count} tokens at {p} do not continue {self.batch} x {self.length}")
        self.tokens[:, p : p + count] = tokens
        first, end = (left(x, self.window_size, self.departure) for x in (p - 1, p + count - 1))
        if self.decide is not None:
            self._check_chunk(p, count)
            same = self.tokens[:, : p + count].unsqueeze(1) == tokens.unsqueeze(2)  # [B, T, p + T]
            earlier = torch.arange(p + count) < torch.arange(p, p + count).unsqueeze(1)
            self.seen[3, :, p : p + count] = (same & earlier).sum(-1).float()
            if end > first:
                self._assign(first, self.decide(self.features(first, end), torch.arange(first, end)))
        elif end > first:
            self.fill[:, 0] += end - first
        self.length = p + count
        return torch.tensor([p, first, end])

    def _check_chunk(self, p: int, count: int) -> None:
        if self.departure > 1 and p % self.departure + count > self.departure:
            raise ValueError(f"{count} tokens at {p} cross a multiple of {self.departure}")
        if self.departure == 1 and count > max(self.window_size - self.lag, 1):
            raise ValueError(f"a chunk of {count} is too long for a window of {self.window_size}, lag {self.lag}")

    def _oldest(self, position: int) -> int:
        """The first position in the window once `position` is appended; 0 counts like any other."""
        return max(0, oldest(position, self.window_size, self.departure))

    def features(self, first: int, end: int) -> Tensor:
        """float32 [B, end - first, 8], as ``reference.depart`` defines them."""
        at, attentions = slice(first, end), self.config.n_layers * self.config.n_heads
        own, own_squared, received = (x[:, at] / attentions for x in self.sums)
        variance = (own_squared - own * own).clamp(min=0)
        confidence, entropy, surprisal, repeats = self.seen[:, :, at]
        columns = [
            self.log_frequency[self.tokens[:, at]],
            confidence,
            torch.log(variance + VARIANCE_FLOOR),
            entropy,
            surprisal,
            torch.log(own + ATTENTION_FLOOR),
            torch.log1p(repeats),
            torch.log(received / max(self.lag, 1) + ATTENTION_FLOOR),
        ]
        return torch.stack(columns, dim=-1)

    def _assign(self, first: int, wanted: Tensor) -> None:
        """Tier of each leaving token, spilling to the nearest one with room."""
        rows = torch.arange(self.batch)
        for i in range(wanted.shape[1]):
            order = self.order[wanted[:, i]]  # [B, K]
            room = (self.fill < self.capacities).gather(1, order)
            if not bool(room.any(1).all()):
                raise ValueError("every tier is full: the plan does not hold the context")
            tier = order[rows, room.int().argmax(1)]
            self.tiers[:, first + i] = tier
            self.fill[rows, tier] += 1

    def attend(self, layer: int, qkv: Tensor, plan: Tensor, input_pos: Tensor) -> Tensor:
        c, (batch, count, _), (p, first, end) = self.config, qkv.shape, plan.tolist()
        parts = qkv.reshape(batch, count, -1, c.head_dim).split([c.n_heads, c.n_kv_heads, c.n_kv_heads], dim=2)
        q, k = (self._rope(x, p) for x in parts[:2])
        v = parts[2].transpose(1, 2)
        q = q.reshape(batch, c.n_kv_heads, -1, c.head_dim) * (1.0 / math.sqrt(c.head_dim))  # [B, KV, G T, D]
        far, near, start = self._store(layer, (k, v), p, first, end)
        q = self.rows.queries(layer, q)
        scores = torch.cat([q @ x[0].transpose(-1, -2) for x in (far, near)], dim=-1)
        n_far, group = far[0].shape[2], c.n_heads // c.n_kv_heads
        visible = self._visible(p, count, n_far, start, near[0].shape[2])  # [T, n]
        scores.unflatten(2, (group, count)).masked_fill_(~visible, -math.inf)
        probability = scores.softmax(-1)
        out = probability[..., :n_far] @ far[1] + probability[..., n_far:] @ near[1]
        if self.decide is not None:
            self._record(probability[..., n_far:].unflatten(2, (group, count)), p, start)
        out = self.rows.output(layer, out).unflatten(2, (group, count))  # [B, KV, G, T, D]
        return out.permute(0, 3, 1, 2, 4).reshape(batch, count, c.n_heads * c.head_dim)

    def _store(
        self, layer: int, new: tuple[Tensor, Tensor], p: int, first: int, end: int
    ) -> tuple[list[Tensor], list[Tensor], int]:
        """Append, demote; rows beyond the window, rows of the window, and the position of the first of those."""
        count = new[0].shape[2]
        start, kept = self._oldest(p - 1), self._oldest(p + count - 1)
        n_far = max(int(self.keeps_sink), kept)
        far, near = [], []
        for side, x in enumerate(new):
            exact = self.rows.stored(layer, side, x)
            rows = self.rows.window(layer, side, exact)
            old = self.near[layer][side]
            recent = rows if old is None else torch.cat((old, rows), dim=2)  # positions start .. p + T - 1
            store = self.far[layer][side]
            if p == 0:
                head = exact[:, :, :1]
                zero = torch.zeros(head.shape[0], 1, dtype=torch.int64)
                store[:, :, :1] = (
                    self.rows.sink(layer, side, head)
                    if self.keeps_sink
                    else self.rows.demoted(layer, side, rows[:, :, :1], zero)
                )
            if end > first:
                leaving = recent[:, :, first - start : end - start]
                store[:, :, first:end] = self.rows.demoted(layer, side, leaving, self.tiers[:, first:end])
            self.near[layer][side] = recent[:, :, kept - start :].clone()
            far.append(store[:, :, :n_far])
            near.append(recent)
        return far, near, start

    def _visible(self, p: int, count: int, n_far: int, start: int, n_near: int) -> Tensor:
        """bool [T, n_far + n_near]: a query sees the sink, what left its window, and its window."""
        query = torch.arange(p, p + count).unsqueeze(1)
        newest_left = oldest(query, self.window_size, self.departure) - 1
        position = torch.arange(n_far)
        far = position <= newest_left
        recent = torch.arange(start, start + n_near)
        near = (recent <= query) & (recent > newest_left)
        if self.keeps_sink:
            far |= position == 0
            near &= recent > 0
        return torch.cat((far, near), dim=1)

    def _record(self, recent: Tensor, p: int, start: int) -> None:
        """Add what each recent token pays to itself and receives. recent: [B, KV, G, T, n_near]."""
        count, n = recent.shape[-2:]
        own = recent.diagonal(offset=p - start, dim1=-2, dim2=-1)
        self.sums[0, :, p : p + count] += own.sum((1, 2))
        self.sums[1, :, p : p + count] += own.square().sum((1, 2))
        age = torch.arange(p, p + count).unsqueeze(1) - torch.arange(start, start + n)
        mask = ((age >= 1) & (age <= self.lag)).float()
        self.sums[2, :, start : start + n] += (recent.sum((1, 2)) * mask).sum(1)

    def _rope(self, x: Tensor, p: int) -> Tensor:
        """[B, T, heads, D] -> [B, heads, T, D], rotated."""
        batch, count, heads, dim = x.shape
        cos, sin = (t[p : p + count].repeat(batch, 1) for t in (self.cos, self.sin))
        return apply_rope(x.reshape(-1, heads, dim), cos, sin).reshape(x.shape).transpose(1, 2)

    def end(self, logits: Tensor, tokens: Tensor, input_pos: Tensor) -> None:
        p, count = int(input_pos), tokens.shape[1]
        first = logits[:, :1] if self.last_logits is None else self.last_logits.unsqueeze(1)
        log_p = torch.cat((first, logits[:, :-1]), dim=1).log_softmax(-1)
        at = slice(p, p + count)
        self.seen[2, :, at] = -log_p.gather(2, tokens.unsqueeze(2))[..., 0]
        best = log_p.max(-1)
        self.greedy[:, at] = best.indices == tokens
        if self.decide is not None:
            self.seen[0, :, at] = best.values.exp()
            self.seen[1, :, at] = -(log_p.exp() * log_p).sum(-1)
        if p == 0:
            self.seen[:3, :, 0] = 0.0
            self.greedy[:, 0] = False
        self.last_logits = logits[:, -1].clone()
