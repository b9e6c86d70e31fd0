"""The quantized cache as a differentiable function of tier probabilities, one window of text in one pass."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adakv_model.attention import apply_rope
from adakv_model.config import LlamaConfig
from adakv_model.model import rope_tables
from adakv_model.simulation.plan_rows import PlanRows
from adakv_model.window import oldest


class SoftTierCache(nn.Module):
    """A ``KVCache`` for one chunk from position 0, batch 1. Tokens in the window (``plan.left``) are read at 8 bits,
    position 0 as the sink, and an older token t as the sum over tiers of `weights`[t, k] times its row as tier k stores
    it.

    With one-hot weights it reads what ``SimulatedCache`` reads. Gradients flow to `weights`, float32 [T, K], and
    through the rows to earlier layers, quantization passed straight through (Bengio et al., arXiv 1308.3432).
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, config: LlamaConfig, rows: PlanRows, context: int) -> None:
        super().__init__()
        self.config, self.rows, plan = config, rows, rows.plan
        self.window, self.departure, self.longest = plan.window, plan.departure, plan.window + plan.departure - 1
        cos, sin = rope_tables(config, context)
        self.register_buffer("cos", cos)
        self.register_buffer("sin", sin)
        self.weights = torch.zeros(context, rows.plan.n_tiers)

    def begin(self, tokens: Tensor, input_pos: Tensor) -> Tensor:
        return input_pos

    def end(self, logits: Tensor, tokens: Tensor, input_pos: Tensor) -> None:
        pass

    def attend(self, layer: int, qkv: Tensor, plan: Tensor, input_pos: Tensor) -> Tensor:
        c, count, rows = self.config, qkv.shape[1], self.rows
        parts = qkv.reshape(count, -1, c.head_dim).split([c.n_heads, c.n_kv_heads, c.n_kv_heads], dim=1)
        q, k = (apply_rope(x, self.cos[:count], self.sin[:count]).transpose(0, 1) for x in parts[:2])
        q = q.reshape(1, c.n_kv_heads, -1, c.head_dim) * (1.0 / math.sqrt(c.head_dim))
        q = rows.queries(layer, q)[0].unflatten(1, (-1, count))  # [KV, G, T, D]
        near, far = zip(
            *(self._rows(layer, side, x) for side, x in enumerate((k, parts[2].transpose(0, 1)))), strict=True
        )
        scores = q.flatten(1, 2) @ far[0].transpose(1, 2)  # [KV, G T, T]
        recent = self._recent(near[0])  # [KV, T, W, D]
        close = torch.einsum("hgtd,htwd->hgtw", q, recent)
        newest_left = oldest(torch.arange(count), self.window, self.departure).unsqueeze(1) - 1
        old = torch.arange(count) <= newest_left
        old[:, 0] = True
        position = self._recent(torch.arange(count).view(1, -1, 1).float())[0, :, :, 0]  # 0: padding, or the sink
        inside = position > newest_left.clamp(min=0)
        both = torch.cat(
            (
                scores.unflatten(1, (-1, count)).masked_fill(~old, -math.inf),
                close.masked_fill(~inside, -math.inf),
            ),
            dim=-1,
        )
        p = both.softmax(-1)
        out = (p[..., :count].flatten(1, 2) @ far[1]).unflatten(1, (-1, count))
        out = out + torch.einsum("hgtw,htwd->hgtd", p[..., count:], self._recent(near[1]))
        out = rows.output(layer, out.flatten(1, 2).unsqueeze(0))[0].unflatten(1, (-1, count))
        return out.permute(2, 0, 1, 3).reshape(1, count, -1)

    def _rows(self, layer: int, side: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [KV, T, D] -> rows in the window and after it, [KV, T, D]."""
        exact = self.rows.stored(layer, side, x.unsqueeze(0))
        with torch.no_grad():
            near = self.rows.window(layer, side, exact)
            count, tiers = x.shape[1], range(self.weights.shape[1])
            zero = torch.zeros(1, count, dtype=torch.int64)
            stored = torch.cat([self.rows.demoted(layer, side, near, zero + k) for k in tiers])  # [K, KV, T, D]
            stored[:, :, :1] = self.rows.sink(layer, side, exact[:, :, :1])
            noise = stored - exact
        far = exact + torch.einsum("khtd,tk->htd", noise, self.weights[:count])
        return (exact + (near - exact).detach())[0], far[0]

    def _recent(self, x: Tensor) -> Tensor:
        """x [KV, T, D] -> as many rows up to each position as the window ever holds, zero before the start:
        [KV, T, W, D]."""
        return F.pad(x, (0, 0, self.longest - 1, 0)).unfold(1, self.longest, 1).transpose(2, 3)
