"""The learned controller: features of a token that leaves the window -> one logit per tier.

A small MLP. Its last layer is built from a scalar importance score s (log damage per unit of quantization
noise, see scripts/train_controller.py) and rising thresholds t_1 <= t_2 ...: with logit_k = k s - (t_1 + ... + t_k)
the largest logit is the number of thresholds below s, so a new bit budget only moves a bias.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from adakv_model.features import FEATURES

HIDDEN = 16


class ImportanceScorer(nn.Module):
    """features float32 [T, 8] -> importance score float32 [T, 1]. Features outside its set have weight zero."""

    def __init__(self, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.hidden = nn.Linear(len(FEATURES), hidden)
        self.score = nn.Linear(hidden, 1)

    def forward(self, features: Tensor) -> Tensor:
        return self.score(torch.relu(self.hidden(features)))


def tier_terms(thresholds: Sequence[float]) -> tuple[Tensor, Tensor]:
    """rank, offsets: float32 [K] with tier logits = rank * score - offsets."""
    rank = torch.arange(len(thresholds) + 1, dtype=torch.float32)
    return rank, torch.tensor([0.0, *thresholds], dtype=torch.float32).cumsum(0)


class Controller(nn.Module):
    """features float32 [T, 8] -> tier logits float32 [T, K]."""

    def __init__(self, scorer: ImportanceScorer, thresholds: Sequence[float]) -> None:
        super().__init__()
        width = scorer.hidden.out_features
        self.hidden = nn.Linear(len(FEATURES), width)
        self.tier = nn.Linear(width, len(thresholds) + 1)
        rank, offsets = tier_terms(thresholds)
        with torch.no_grad():
            self.hidden.load_state_dict(scorer.hidden.state_dict())
            self.tier.weight.copy_(rank.unsqueeze(1) * scorer.score.weight)
            self.tier.bias.copy_(rank * scorer.score.bias - offsets)

    def forward(self, features: Tensor) -> Tensor:
        return self.tier(torch.relu(self.hidden(features)))
