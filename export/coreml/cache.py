"""The mixed-precision cache as a Core ML graph: a `KVCache` in torch operations that convert to an ML Program.

Semantics are those of adakv_model/reference.py: sink, window ring, tiers chosen by the controller in the graph, spill
to the nearest tier with room, reset at position 0. A step is the function `decode` (one token) or `prefill` (exactly
T tokens). Every write is unconditional: a row that is not stored goes to a pool's trash column (decode), or has no
column in a one-hot product (prefill). Each layer reads its pools once and unpacks all rows into one [units, D, rows]
tensor, so attention is two products and one softmax whatever the number of tiers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adakv_model.config import LlamaConfig
from adakv_model.controller import Controller
from adakv_model.errors import UserError
from adakv_model.model import Llama
from adakv_model.plan import CachePlan
from adakv_model.tables import CalibrationTables, RowTables
from export.coreml.control import Control, Step
from export.coreml.inputs import InputLayout
from export.coreml.layout import RAW_BITS, StateLayout
from export.coreml.places import Inputs, Place, States
from export.coreml.rows import (
    NarrowTiers,
    pack_row,
    quantize_window,
    row_transforms,
    unpack_row,
    window_levels,
)
from export.coreml.storage import FP16, Storage


def check_plan(plan: CachePlan, storage: Storage = FP16) -> None:
    """Raise UserError for a plan that this cache cannot hold."""
    raw = plan.window_bits == RAW_BITS
    if raw and storage is not FP16:
        raise UserError("--cache-io int8 holds codes of up to 8 bits: drop --kv fp16 and --window-bits 16")
    if raw and (plan.unit_bits != RAW_BITS).any():
        raise UserError(
            "--target ios keeps an 8-bit window in front of narrower tiers: drop --window-bits 16, or use --kv fp16"
        )


@dataclass(frozen=True)
class Encoded:
    """The chunk's rows as the window holds them: levels [units, D, T], scales [units, 1, T], columns [channels, T]."""

    levels: Tensor
    scales: Tensor
    columns: Tensor


class CoreMLCache(nn.Module):
    """Per layer: sink, one pool a narrow tier, the window's pool. See export/coreml/layout.py.

    storage: fp16 pools are states, int8 pools are inputs.
    """

    def __init__(
        self,
        config: LlamaConfig,
        plan: CachePlan,
        tables: CalibrationTables,
        controller: Controller | None,
        storage: Storage = FP16,
    ) -> None:
        super().__init__()
        check_plan(plan, storage)
        self.config, self.plan = config, plan
        self.layout = StateLayout(plan, storage)
        self.place: Place = States(self, self.layout) if storage is FP16 else Inputs(InputLayout(self.layout))
        self.control = Control(config, self.layout, tables, controller)
        rows = tables.for_plan(plan)
        self.narrow: list[NarrowTiers | None] = []
        for layer in range(plan.n_layers):
            self.place.register(layer)
            self._register_constants(layer, rows, tables.v_mean[layer].float())
            tiers = self.layout.narrow_tiers
            self.narrow.append(NarrowTiers([self.layout.row(layer, tier) for tier in tiers]) if tiers else None)
        self._steps = _Current()

    def _register_constants(self, layer: int, rows: RowTables, v_mean: Tensor) -> None:
        maps = row_transforms(rows, layer)
        group = self.plan.n_heads // self.plan.n_kv_heads
        constants = {
            "mean": torch.cat((rows.k_mean[layer].float(), v_mean)).unsqueeze(-1),  # [units, D, 1]
            "store": maps.store,
            "query": maps.query.transpose(1, 2).contiguous(),  # [KV, D, D]
            "output": maps.output.transpose(1, 2).contiguous(),  # [1, D, D]
            "offset": v_mean.repeat_interleave(group, 0).unsqueeze(1),  # [H, 1, D]
        }
        for name, value in constants.items():
            self.register_buffer(f"{name}_{layer}", value)

    @property
    def step(self) -> Step:
        """The step that is being traced or run."""
        return self._steps.step

    def begin(self, tokens: Tensor, input_pos: Tensor) -> Tensor:
        """tokens: int32 [1, T]; input_pos: int32 [1]."""
        self._steps.step = self.control.begin(tokens, input_pos)
        return self.step.plan

    def end(self, logits: Tensor, tokens: Tensor, input_pos: Tensor) -> None:
        self.control.end(self.step, logits, tokens)

    def attend(self, layer: int, qkv: Tensor, plan: Tensor, input_pos: Tensor) -> Tensor:
        c, step, count = self.config, self.step, qkv.shape[1]
        q, rows = self._project(layer, qkv)  # [KV, G T, D], [units, D, T]
        sink = self._sink(layer, rows)
        levels, scales = [sink], [torch.ones(rows.shape[0], 1, 1)]
        fresh = self._encode(rows)
        for part in self._stored(layer, fresh):
            levels.append(part[0])
            scales.append(part[1])
        stored, scale = torch.cat(levels, dim=2), torch.cat(scales, dim=2)  # [units, D, N], [units, 1, N]
        self.place.write_window(layer, fresh.columns, step)  # only now: the ring was read as it was before the step
        kv = c.n_kv_heads
        scores = (q @ stored[:kv]) * scale[:kv] + step.mask  # [KV, G T, N]
        probability = scores.softmax(-1)
        mixed = (probability * scale[kv:]) @ stored[kv:].transpose(1, 2)  # [KV, G T, D]
        if self.plan.adaptive:
            self._record(probability.reshape(c.n_heads, count, -1), count)
        out = mixed.reshape(c.n_heads, count, c.head_dim) @ getattr(self, f"output_{layer}")
        out = out + getattr(self, f"offset_{layer}")
        return out.transpose(0, 1).reshape(1, count, -1)

    def _project(self, layer: int, qkv: Tensor) -> tuple[Tensor, Tensor]:
        """RoPE and the row maps: queries [KV, G T, D] and new rows [units, D, T] (K heads, then V heads)."""
        c, step, half = self.config, self.step, self.config.head_dim // 2
        x = qkv[0].T.reshape(-1, c.head_dim, qkv.shape[1])  # [H + 2 KV, D, T]
        rotary = x[: c.n_heads + c.n_kv_heads]
        swapped = torch.cat((rotary[:, half:], rotary[:, :half]), dim=1)
        rotary = rotary * step.cos + swapped * step.sin
        q = rotary[: c.n_heads].transpose(1, 2).reshape(c.n_kv_heads, -1, c.head_dim) @ getattr(self, f"query_{layer}")
        rows = torch.cat((rotary[c.n_heads :], x[c.n_heads + c.n_kv_heads :])) - getattr(self, f"mean_{layer}")
        return q, getattr(self, f"store_{layer}") @ rows

    def _sink(self, layer: int, rows: Tensor) -> Tensor:
        """Store position 0 and return the sink's row [units, D, 1]."""
        units, dim, _ = rows.shape
        first, size = rows[:, :, :1].reshape(1, 1, 1, -1), self.layout.sink_shape[-1]
        if size > units * dim:
            first = torch.cat((first, torch.zeros(1, 1, 1, size - units * dim)), dim=3)
        return self.place.sink(layer, first, self.step)[0, 0, 0, : units * dim].reshape(units, dim, 1)

    def _encode(self, rows: Tensor) -> Encoded:
        """The chunk's rows in the window's format."""
        row = self.layout.window_row
        if not row.raw:
            fresh = quantize_window(rows)
            return Encoded(window_levels(fresh.codes), fresh.scales, pack_row(row, fresh.codes, fresh.scales))
        columns = rows.reshape(-1, rows.shape[2])
        if row.channels > row.used_channels:
            columns = torch.cat((columns, torch.zeros(row.channels - row.used_channels, rows.shape[2])))
        return Encoded(rows, torch.ones(rows.shape[0], 1, rows.shape[2]), columns)

    def _stored(self, layer: int, fresh: Encoded) -> list[tuple[Tensor, Tensor]]:
        """Demote the rows that leave; levels and scales of the tiers, the window before the step, and the chunk."""
        spec = self.layout.window_pool(layer)
        pool = self.place.pool(layer, spec)
        if spec.row.raw:
            units, dim = spec.row.units, spec.row.head_dim
            levels, scales = pool[0, : units * dim, 0].reshape(units, dim, -1), torch.ones(units, 1, spec.slots)
        else:
            levels, scales = unpack_row(spec.row, pool)
        return [*self._demote(layer, levels, scales), (levels, scales), (fresh.levels, fresh.scales)]

    def _demote(self, layer: int, levels: Tensor, scales: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Requantize the leaving window rows into the narrow tiers; every tier's levels and scales."""
        step, tiers = self.step, self.layout.narrow_tiers
        requantize = self.narrow[layer]
        if requantize is None:
            return []
        left, left_scales = levels @ step.leaving, scales @ step.leaving
        narrow = requantize(left, left_scales)
        parts = []
        for i, tier in enumerate(tiers):
            spec = self.layout.tier_pool(layer, tier)
            columns = pack_row(spec.row, narrow.codes[i], narrow.scales[i])
            parts.append(unpack_row(spec.row, self.place.write(layer, spec, columns, step.tiers[i])))
        return parts

    def _record(self, probability: Tensor, count: int) -> None:
        """Sum the attention that the window and the chunk receive. probability: [H, T, N]."""
        step = self.step
        recent = probability[:, :, probability.shape[2] - self.plan.window - count :]
        chunk = recent[:, :, self.plan.window :]
        total, squared = recent.sum(0), (chunk * chunk).sum(0)
        step.recent = total if step.recent is None else step.recent + total
        step.own_squared = squared if step.own_squared is None else step.own_squared + squared


class _Current:
    """Holds the open step outside the module's attributes, which torch.export watches for tensors."""

    step: Step


class CoreMLProgram(nn.Module):
    """What is converted: (tokens int32 [1, T], input_pos int32 [1]) -> logits [1, T, V], plan int32 [T, 2 + K],
    status int32 [1]. `plan` is the step plan of reference.assign; `status` is a `Status`. With int8 storage a third
    argument holds the arrays of `InputLayout`, and their new rows come out before the status."""

    def __init__(self, model: Llama) -> None:
        super().__init__()
        self.model = model
        self.eval().requires_grad_(False)

    @property
    def cache(self) -> CoreMLCache:
        assert isinstance(self.model.cache, CoreMLCache)
        return self.model.cache

    @property
    def inputs(self) -> InputLayout | None:
        """The arrays that the host keeps; None if the cache lies in states."""
        return self.cache.place.layout if isinstance(self.cache.place, Inputs) else None

    def forward(self, tokens: Tensor, input_pos: Tensor, cache: dict[str, Tensor] | None = None) -> tuple[Tensor, ...]:
        self.cache.place.open(cache)
        logits = self.model(tokens, input_pos)
        # The status comes last because coremltools 9.0 fails where the last operation's result goes into a state.
        return logits, self.cache.step.plan, *self.cache.place.new(), self.cache.step.status()
