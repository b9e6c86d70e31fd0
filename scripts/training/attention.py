"""Causal attention that says which tokens matter once they have left the window.

A key or value is read exactly (8 bits or more) while it is in the window and in few bits by every later query. So
the damage that quantization can do goes through the *far* pairs only, whose token has left when the query comes.
The backward pass here gives the ordinary gradients, so that they flow to earlier layers, and beside them the
part that came through far pairs. Probabilities are recomputed block by block: memory grows with T, not T^2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from adakv_model.config import LlamaConfig
from adakv_model.kv_cache import FloatCache
from adakv_model.window import oldest
from training.positions import before_rope

BLOCK = 64  # queries whose probabilities exist at the same time


@dataclass
class LayerTrace:
    """What one layer leaves behind. Forward: own, own_squared, received float32 [T] (sums over heads of
    attention, as in reference.py's observations) and mean_square [2, KV, T] of centred K, V rows. Backward:
    gradient_square [2, KV, T], squared norms of the far gradients; k_outer [2, KV, D, D], sums over tokens (not the
    sink) of the outer products of K's far gradients, after RoPE, and of its centred rows before RoPE."""

    own: Tensor
    own_squared: Tensor
    received: Tensor
    mean_square: Tensor
    gradient_square: Tensor = field(default_factory=lambda: torch.empty(0))
    k_outer: Tensor = field(default_factory=lambda: torch.empty(0))

    @classmethod
    def zeros(cls, count: int, mean_square: Tensor) -> LayerTrace:
        own, own_squared, received = torch.zeros(3, count)
        return cls(own, own_squared, received, mean_square)


@dataclass(frozen=True)
class _Geometry:
    k_mean: Tensor  # [KV, D], before RoPE
    window: int
    departure: int
    lag: int
    cos: Tensor  # [T, D / 2]
    sin: Tensor

    def centred(self, k: Tensor) -> Tensor:
        """Rows [KV, T, D] of K before RoPE and without their mean, from those after it."""
        return before_rope(k, self.cos, self.sin) - self.k_mean.unsqueeze(1)


class TracingCache(FloatCache):
    """FloatCache for one window of text at a time (batch 1, input_pos 0) that records a LayerTrace per layer.

    k_mean, v_mean: float32 [L, KV, D], of K before RoPE and of V. departure: see ``plan.left``.
    """

    def __init__(
        self,
        config: LlamaConfig,
        context: int,
        k_mean: Tensor,
        v_mean: Tensor,
        window: int,
        lag: int,
        departure: int = 1,
    ) -> None:
        super().__init__(config, context)
        self.k_mean, self.v_mean, self.window, self.lag, self.departure = k_mean, v_mean, window, lag, departure
        self.traces: list[LayerTrace] = []

    def begin(self, tokens: Tensor, input_pos: Tensor) -> Tensor:
        self.traces = []
        return super().begin(tokens, input_pos)

    def attend(self, layer: int, qkv: Tensor, plan: Tensor, input_pos: Tensor) -> Tensor:
        c, count = self.config, qkv.shape[1]
        if not qkv.requires_grad:  # the first layer: nothing below it is trained
            qkv = qkv.detach().requires_grad_()
        parts = qkv.reshape(1, count, -1, c.head_dim).split([c.n_heads, c.n_kv_heads, c.n_kv_heads], dim=2)
        q, k = (self._rope(x, plan)[0] for x in parts[:2])
        unrotated, v = (x[0].transpose(0, 1) for x in parts[1:])
        q = q.reshape(c.n_kv_heads, -1, count, c.head_dim) * (1.0 / math.sqrt(c.head_dim))
        means = self.k_mean[layer], self.v_mean[layer]
        rows = zip((unrotated, v), means, strict=True)
        squares = [(x.detach() - m.unsqueeze(1)).square().mean(-1) for x, m in rows]
        trace = LayerTrace.zeros(count, torch.stack(squares))
        self.traces.append(trace)
        geometry = _Geometry(means[0], self.window, self.departure, self.lag, self.cos[plan], self.sin[plan])
        out = _Attention.apply(q, k, v, trace, geometry)
        return out.reshape(c.n_heads, count, c.head_dim).transpose(0, 1).reshape(1, count, -1)


class _Attention(torch.autograd.Function):
    """q: [KV, G, T, D], already divided by sqrt(D); k, v: [KV, T, D] -> [KV, G, T, D]."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, trace: LayerTrace, geometry: _Geometry) -> Tensor:
        out = torch.empty_like(q)
        for a, b in _blocks(q.shape[2]):
            p = _probabilities(_scores(q, k, a, b), a)
            out[:, :, a:b] = _times(p, v[:, :b])
            _record(trace, p, a, b, geometry.lag)
        ctx.save_for_backward(q, k, v, out)
        ctx.trace, ctx.geometry = trace, geometry
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out = ctx.saved_tensors
        grad, geometry = gradients[0].contiguous(), ctx.geometry
        dq, far = torch.empty_like(q), torch.zeros(2, *k.shape)
        near = torch.zeros_like(far)
        for a, b in _blocks(q.shape[2]):
            p = _probabilities(_scores(q, k, a, b), a)
            g = grad[:, :, a:b]
            dp = _times(g, v[:, :b].transpose(1, 2))
            ds = p * (dp - (g * out[:, :, a:b]).sum(-1, keepdim=True))
            dq[:, :, a:b] = _times(ds, k[:, :b])
            low, mask = _near(a, b, geometry.window, geometry.departure)
            for i, (weights, other) in enumerate(((ds, q[:, :, a:b]), (p, g))):
                near[i, :, low:b] += _outer(weights[..., low:] * mask, other)
                weights[..., low:].masked_fill_(mask, 0.0)
                far[i, :, :b] += _outer(weights, other)
        ctx.trace.gradient_square = far.square().sum(-1)
        ctx.trace.k_outer = torch.stack([_second_moment(x) for x in (far[0], geometry.centred(k))])
        dk, dv = far + near
        return dq, dk, dv, None, None


def _second_moment(x: Tensor) -> Tensor:
    """Sum over tokens, without the sink, of the outer products of rows [KV, T, D]: [KV, D, D]."""
    rows = x[:, 1:]
    return rows.transpose(1, 2) @ rows


def _blocks(count: int) -> list[tuple[int, int]]:
    return [(a, min(a + BLOCK, count)) for a in range(0, count, BLOCK)]


def _times(x: Tensor, y: Tensor) -> Tensor:
    """[KV, G, B, n] times [KV, n, m] -> [KV, G, B, m]."""
    return torch.bmm(x.flatten(1, 2), y).unflatten(1, x.shape[1:3])


def _outer(weights: Tensor, rows: Tensor) -> Tensor:
    """Sum over heads and queries of weights [KV, G, B, n] times rows [KV, G, B, D] -> [KV, n, D]."""
    return torch.bmm(weights.flatten(1, 2).transpose(1, 2), rows.flatten(1, 2))


def _scores(q: Tensor, k: Tensor, a: int, b: int) -> Tensor:
    return _times(q[:, :, a:b], k[:, :b].transpose(1, 2))


def _probabilities(scores: Tensor, a: int) -> Tensor:
    """Causal softmax of the queries that start at position a; `scores` is overwritten."""
    size = scores.shape[2]
    future = torch.ones(size, size, dtype=torch.bool).triu(1)
    scores[..., a:].masked_fill_(future, -math.inf)
    return scores.softmax(-1)


def _near(a: int, b: int, window: int, departure: int = 1) -> tuple[int, Tensor]:
    """First position that any of the queries a .. b - 1 has in its window, and which it has: bool [B, b - low].

    The sink counts as in the window while the first `window` tokens do; nothing depends on it."""
    query = torch.arange(a, b).unsqueeze(1)
    first = oldest(query, window, departure)
    low = max(0, int(first[0]))
    token = torch.arange(low, b)
    return low, (token <= query) & (token >= first)


def _record(trace: LayerTrace, p: Tensor, a: int, b: int, lag: int) -> None:
    """Attention to the token itself and from its next `lag` queries, as reference._record_attention sums
    it."""
    own = p.diagonal(offset=a, dim1=-2, dim2=-1)
    trace.own[a:b], trace.own_squared[a:b] = own.sum((0, 1)), own.square().sum((0, 1))
    low, mask = _near(a, b, lag + 1)
    mask.diagonal(offset=a - low).fill_(False)
    trace.received[low:b] += (p[..., low:].sum((0, 1)) * mask).sum(0)
