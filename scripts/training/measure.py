"""Measured sensitivity: what quantizing one side (K or V) of one layer costs, as a KL divergence.

The Fisher estimate of ``collect.py`` adds up noise as if it were independent between tokens. Quantization errors are
not: they depend on the row, so those of similar tokens agree and add up in attention's sums. Measured at 2 bits, far
K rows cost up to six times their estimate, V rows half of it (docs/training.md), and a plan made from the estimates
alone gives K too little. So the estimate only divides a layer's side among heads and bands; this module says how
much the side as a whole is worth, and which scale mode serves it better.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from adakv_model.budget import CacheOptions, plan_cache
from adakv_model.checkpoints import Checkpoint
from adakv_model.plan_rows import PlanRows
from adakv_model.policies import make_policy
from adakv_model.quantizer import ScaleMode
from adakv_model.scoring import Simulator
from adakv_model.tables import CalibrationTables
from training.cli import resumable, track, work_folder

PROBE_BITS = 2  # width of the rows that are measured
PROBE_TOKENS = 1024


class OneSide(PlanRows):
    """Rows of a plan in one layer's K or V; everything else exact."""

    layer, side = -1, -1

    def window(self, layer: int, side: int, x: Tensor) -> Tensor:
        return super().window(layer, side, x) if (layer, side) == (self.layer, self.side) else x

    def sink(self, layer: int, side: int, x: Tensor) -> Tensor:
        return x

    def demoted(self, layer: int, side: int, x: Tensor, tiers: Tensor) -> Tensor:
        return super().demoted(layer, side, x, tiers) if (layer, side) == (self.layer, self.side) else x


def measured_costs(
    checkpoint: Checkpoint, tables: CalibrationTables, window: Tensor, recent: int, work: Path, identity: str
) -> Tensor:
    """KL divergence to the exact cache, nats a token: float32 [L, 2 sides, modes]. window: int64 [T]; recent: the
    cache's window."""
    tokens = window[:PROBE_TOKENS].unsqueeze(0)
    options = CacheOptions(context=tokens.shape[1], window=recent, policy=f"static-{PROBE_BITS}")
    plan = plan_cache(checkpoint.config, tables, options).plan
    exact: list[Tensor] = []
    simulator = Simulator(checkpoint, make_policy("fp16", checkpoint, tables, options), tables)
    simulator.score(tokens, on_logits=lambda _, logits: exact.append(logits.log_softmax(-1)))
    expected = torch.cat(exact, dim=1)[0]
    folder = work_folder(work, stage="measured", identity=identity, bits=PROBE_BITS, recent=recent)

    def probe(layer: int) -> Callable[[], dict[str, Tensor]]:
        def run() -> dict[str, Tensor]:
            costs = torch.zeros(2, len(ScaleMode))
            for side in (0, 1):
                for mode in ScaleMode:
                    costs[side, mode] = divergence(layer, side, mode)
            return {"costs": costs}

        return run

    def divergence(layer: int, side: int, mode: ScaleMode) -> float:
        rows = OneSide(replace(plan, scale_modes=np.full_like(plan.scale_modes, int(mode))), tables)
        rows.layer, rows.side = layer, side
        policy = replace(make_policy(f"static-{PROBE_BITS}", checkpoint, tables, options), rows=rows)
        total = 0.0

        def add(position: int, logits: Tensor) -> None:
            nonlocal total
            p = expected[position : position + logits.shape[1]]
            total += float((p.exp() * (p - logits[0].log_softmax(-1))).sum())

        Simulator(checkpoint, policy, tables).score(tokens, on_logits=add)
        return total / tokens.shape[1]

    layers = range(checkpoint.config.n_layers)
    return torch.stack(
        [resumable(folder / f"{n:03d}.safetensors", probe(n))["costs"] for n in track("measure", layers)]
    )


def scaled_to_measurement(cost: Tensor, measured: Tensor, error: float) -> Tensor:
    """Fisher costs [L, KV, 2, bands], divided as they are, with each layer's side adding up to what was measured.

    measured: [L, 2], at the relative error `error`.
    """
    share = cost / cost.sum((1, 3), keepdim=True).clamp(min=1e-30)
    return share * (measured / error)[:, None, :, None]
