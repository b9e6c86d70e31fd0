"""The caches a model can run on: the mixed-precision cache of the artifacts, and a float one for reference."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import adakv_model.ops  # noqa: F401  (registers torch.ops.adakv)
from adakv_model.attention import apply_rope
from adakv_model.config import LlamaConfig
from adakv_model.controller import Controller
from adakv_model.model import rope_tables
from adakv_model.plan import ATTENTION_SUMS, OBSERVATIONS, CachePlan
from adakv_model.tables import CalibrationTables


def columns(matrices: Tensor) -> Tensor:
    """Transposed matrices [KV, D, D], as the kernels read them."""
    return matrices.transpose(-1, -2).contiguous()


class MixedPrecisionCache(nn.Module):
    """Static-shape cache with sink, window and bit-width tiers; every byte of state is a buffer.

    Works in eager mode through the reference kernels and exports to ExecuTorch through `torch.ops.adakv`.
    Batch size 1; a chunk is 1 to `plan.chunk` tokens; input_pos 0 resets.
    """

    def __init__(
        self, config: LlamaConfig, plan: CachePlan, tables: CalibrationTables, controller: Controller | None
    ) -> None:
        super().__init__()
        if plan.adaptive and controller is None:
            raise ValueError("a plan with several tiers needs a controller")
        self.plan, self.controller = plan, controller
        rows = tables.for_plan(plan)
        cos, sin = rope_tables(config, plan.context)
        constants = {"cos": cos, "sin": sin, "token_log_frequency": tables.token_log_frequency.float()}
        constants |= {"capacities": torch.tensor(plan.capacities, dtype=torch.int32)}
        for layer in range(plan.n_layers):
            constants[f"k_mean_{layer}"] = rows.k_mean[layer].float()
            constants[f"v_mean_{layer}"] = tables.v_mean[layer].float()
            constants[f"k_columns_{layer}"] = columns(rows.k_transform[layer].float())
            constants[f"q_columns_{layer}"] = columns(rows.q_transform[layer] / math.sqrt(plan.head_dim))
            constants[f"layout_{layer}"] = plan.layout(layer)
        for name, value in {**constants, **self._fresh_state()}.items():
            self.register_buffer(name, value)

    progress: Tensor
    tiers: Tensor

    def _fresh_state(self) -> dict[str, Tensor]:
        plan = self.plan
        state = {
            "progress": torch.zeros(1 + plan.n_tiers, dtype=torch.int32),
            "tiers": torch.zeros(plan.context, dtype=torch.uint8),
            "attention": torch.zeros(plan.ring, len(ATTENTION_SUMS), dtype=torch.int64),
        }
        if plan.adaptive:
            state["history"] = torch.zeros(plan.context, dtype=torch.int32)
            state["observed"] = torch.zeros(plan.ring, len(OBSERVATIONS))
        if plan.observes:
            state["last_logits"] = torch.zeros(plan.vocab_size)
        state["workspace"] = torch.zeros(plan.workspace_bytes, dtype=torch.uint8)
        for layer in range(plan.n_layers):
            state[f"cache_{layer}"] = torch.zeros(plan.layer_bytes(layer), dtype=torch.uint8)
        return state

    def begin(self, tokens: Tensor, input_pos: Tensor) -> Tensor:
        plan = self.plan
        if self.controller is None:
            logits = F.pad(tokens.reshape(-1, 1).to(torch.float32) * 0.0, (0, 0, 0, plan.departure - 1))
        else:
            features = torch.ops.adakv.depart(
                tokens,
                input_pos,
                self.token_log_frequency,
                self.progress,
                self.history,
                self.observed,
                self.attention,
                plan.n_layers * plan.n_heads,
                plan.lag,
                plan.window,
                plan.departure,
            )
            logits = self.controller(features)
        return torch.ops.adakv.assign(
            logits, input_pos, self.capacities, self.progress, self.tiers, plan.window, plan.departure
        )

    def attend(self, layer: int, qkv: Tensor, plan: Tensor, input_pos: Tensor) -> Tensor:
        names = ("k_mean", "v_mean", "k_columns", "q_columns", "layout", "cache")
        per_layer = [getattr(self, f"{name}_{layer}") for name in names]
        return torch.ops.adakv.attend(
            qkv,
            self.cos,
            self.sin,
            plan,
            input_pos,
            *per_layer,
            self.attention,
            self.workspace,
            self.plan.lag if self.controller is not None else -1,
            self.plan.window,
            self.plan.departure,
        )

    def end(self, logits: Tensor, tokens: Tensor, input_pos: Tensor) -> None:
        if self.plan.observes:
            torch.ops.adakv.observe(logits, tokens, input_pos, self.observed, self.last_logits)


class FloatCache(nn.Module):
    """Unquantized cache in the model's dtype, for eager reference runs; any batch size and chunk length.

    Differentiable with respect to the current chunk; `keys[layer]`, `values[layer]` are [B, KV, n, D] after RoPE.
    """

    def __init__(self, config: LlamaConfig, context: int) -> None:
        super().__init__()
        self.config, self.context = config, context
        self.cos: Tensor
        self.sin: Tensor
        cos, sin = rope_tables(config, context)
        self.register_buffer("cos", cos)
        self.register_buffer("sin", sin)
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def begin(self, tokens: Tensor, input_pos: Tensor) -> Tensor:
        p, count = int(input_pos), tokens.shape[1]
        held = self.keys[0].shape[2] if self.keys else 0
        if p not in (0, held):
            raise ValueError(f"input_pos is {p}: continue at {held} or reset at 0")
        if p + count > self.context:
            raise ValueError(f"context full: position {p + count} is past the capacity of {self.context}")
        if p == 0:
            self.keys, self.values = [], []
        return torch.arange(p, p + count)

    def attend(self, layer: int, qkv: Tensor, plan: Tensor, input_pos: Tensor) -> Tensor:
        c, (batch, count, _) = self.config, qkv.shape
        parts = qkv.reshape(batch, count, -1, c.head_dim).split([c.n_heads, c.n_kv_heads, c.n_kv_heads], dim=2)
        q, k = (self._rope(x, plan) for x in parts[:2])
        v = parts[2].transpose(1, 2)
        if layer < len(self.keys):
            k, v = torch.cat((self.keys[layer], k), dim=2), torch.cat((self.values[layer], v), dim=2)
            self.keys[layer], self.values[layer] = k, v
        else:
            self.keys.append(k)
            self.values.append(v)
        mask = torch.arange(k.shape[2]) <= plan.unsqueeze(1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        return out.transpose(1, 2).reshape(batch, count, c.n_heads * c.head_dim)

    def _rope(self, x: Tensor, positions: Tensor) -> Tensor:
        """[B, T, heads, D] -> [B, heads, T, D], rotated."""
        batch, _, heads, dim = x.shape
        cos, sin = (t[positions].repeat(batch, 1) for t in (self.cos, self.sin))
        return apply_rope(x.reshape(-1, heads, dim), cos, sin).reshape(x.shape).transpose(1, 2)

    def end(self, logits: Tensor, tokens: Tensor, input_pos: Tensor) -> None:
        pass
