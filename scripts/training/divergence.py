"""KL divergence of a quantized cache to the exact one, on windows of text, with decisions as the cache makes them."""

from __future__ import annotations

import torch
from torch import Tensor

from adakv_model.cache_options import CacheOptions
from adakv_model.checkpoints.load import Checkpoint
from adakv_model.simulation.policies import make_policy
from adakv_model.simulation.scoring import Simulator
from adakv_model.tables import CalibrationTables


def exact_log_probs(checkpoint: Checkpoint, tables: CalibrationTables, windows: Tensor) -> Tensor:
    """Under the unquantized cache: float32 [W, T, V]. windows: int64 [W, T]."""
    policy = make_policy("fp16", checkpoint.config, tables, CacheOptions(context=windows.shape[1], window=1))
    parts: list[Tensor] = []
    simulator = Simulator(checkpoint, policy, tables)
    simulator.score(windows, on_logits=lambda _, logits: parts.append(logits.log_softmax(-1)))
    return torch.cat(parts, dim=1)


def divergence(simulator: Simulator, windows: Tensor, expected: Tensor) -> Tensor:
    """KL of the simulated cache to `expected`, float32 [W, T, V], in nats a token: float64 [W].

    windows: int64 [W, T].
    """
    total = torch.zeros(len(windows), dtype=torch.float64)

    def add(at: int, logits: Tensor) -> None:
        p = expected[:, at : at + logits.shape[1]]
        total.add_((p.exp() * (p - logits.log_softmax(-1))).sum((1, 2)))

    simulator.score(windows, on_logits=add)
    return total / windows.shape[1]
