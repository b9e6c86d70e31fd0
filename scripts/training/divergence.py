"""KL divergence of a quantized cache to the exact one, on windows of text, with decisions as the cache makes them."""

from __future__ import annotations

import torch
from torch import Tensor

from adakv_model.budget import CacheOptions
from adakv_model.checkpoints import Checkpoint
from adakv_model.policies import make_policy
from adakv_model.scoring import Simulator
from adakv_model.tables import CalibrationTables


def exact_log_probs(checkpoint: Checkpoint, tables: CalibrationTables, window: Tensor) -> Tensor:
    """Under the unquantized cache: float32 [T, V]. window: int64 [T]."""
    policy = make_policy("fp16", checkpoint, tables, CacheOptions(context=len(window), window=1))
    parts: list[Tensor] = []
    simulator = Simulator(checkpoint, policy, tables)
    simulator.score(window.unsqueeze(0), on_logits=lambda _, logits: parts.append(logits.log_softmax(-1)))
    return torch.cat(parts, dim=1)[0]


def divergence(simulator: Simulator, window: Tensor, expected: Tensor) -> float:
    """KL of the simulated cache to `expected`, float32 [T, V], in nats a token. window: int64 [T]."""
    total = 0.0

    def add(at: int, logits: Tensor) -> None:
        nonlocal total
        p = expected[at : at + logits.shape[1]]
        total += float((p.exp() * (p - logits[0].log_softmax(-1))).sum())

    simulator.score(window.unsqueeze(0), on_logits=add)
    return total / len(window)
