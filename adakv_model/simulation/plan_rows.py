"""Rows as a ``CachePlan`` stores them, for the simulator: same formulas as ``quantizer.py``, all heads at once."""

from __future__ import annotations

import torch
from torch import Tensor

from adakv_model.plan import SINK_BITS, CachePlan
from adakv_model.quantizer import (
    STEP,
    ScaleMode,
    fake_quantize,
    hadamard,
    half_step,
    is_narrow,
    narrow_codes,
    narrow_scale,
    narrow_values,
    scale_value,
    split_bands,
)
from adakv_model.tables import CalibrationTables


class PlanRows:
    """Sink, window and tier rows of a plan."""

    def __init__(self, plan: CachePlan, tables: CalibrationTables) -> None:
        self.plan = plan
        self.scale_form = ScaleMode.HALF if plan.half_scales else ScaleMode.RMS
        rows = tables.for_plan(plan)
        self.k_mean, self.v_mean = (m.float().unsqueeze(2) for m in (rows.k_mean, tables.v_mean))  # [L, KV, 1, D]
        self.k_transform = rows.k_transform.float().transpose(-1, -2)
        self.q_transform = rows.q_transform.transpose(-1, -2)
        self.tables = [[self._channel_tables(layer, side) for side in (0, 1)] for layer in range(plan.n_layers)]

    def _channel_tables(self, layer: int, side: int) -> list[Tensor]:
        """Width, step and half step by channel, and whether the row is narrow: [K, KV, 1, D or 1]."""
        columns: list[list[list[Tensor]]] = []
        mode = self.plan.scale_modes[layer, :, side]
        for tier in range(self.plan.n_tiers):
            heads = []
            for head in range(self.plan.n_kv_heads):
                bits = int(self.plan.unit_bits[layer, head, side, tier])
                widths = split_bands(bits, self.plan.head_dim) if is_narrow(bits) else [8]
                values = [(w, STEP[w], half_step(w, ScaleMode(int(mode[head])))) for w in widths]
                spread = torch.tensor(values).repeat_interleave(self.plan.head_dim // len(widths), 0)
                heads.append([*spread.T, torch.full((1,), float(is_narrow(bits)))])
            columns.append(heads)
        return [torch.stack([torch.stack([h[i] for h in heads]) for heads in columns]).unsqueeze(2) for i in range(4)]

    def queries(self, layer: int, q: Tensor) -> Tensor:
        return q @ self.q_transform[layer]

    def stored(self, layer: int, side: int, x: Tensor) -> Tensor:
        if side == 0:
            return (x - self.k_mean[layer]) @ self.k_transform[layer]
        return hadamard(x - self.v_mean[layer])

    def sink(self, layer: int, side: int, x: Tensor) -> Tensor:
        return fake_quantize(x, SINK_BITS)

    def window(self, layer: int, side: int, x: Tensor) -> Tensor:
        return fake_quantize(x, self.plan.window_bits)

    def demoted(self, layer: int, side: int, x: Tensor, tiers: Tensor) -> Tensor:
        tables = self.tables[layer][side]
        if self.plan.n_tiers == 1:
            width, step, half, narrow = (t[0] for t in tables)
        else:  # [B, T, KV, 1, D] -> [B, KV, T, D]
            width, step, half, narrow = (t[tiers].squeeze(3).transpose(1, 2) for t in tables)
        scale, stored = narrow_scale(x, self.scale_form)
        values = narrow_values(narrow_codes(x, scale, width, step), scale_value(stored), width, half)
        return torch.where(narrow > 0, values, x)  # a wide row keeps what the window held

    def output(self, layer: int, x: Tensor) -> Tensor:
        return hadamard(x) + self.v_mean[layer]
