"""Token frequencies of a calibration text."""

from __future__ import annotations

import torch
from torch import Tensor

SMOOTHING = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02)


def log_frequencies(ids: Tensor, vocab_size: int) -> tuple[Tensor, float]:
    """Natural log of unigram probabilities float32 [V], and the constant added to every count (Lidstone
    smoothing).

    The constant is the one under which the first half of the text predicts the second half best.
    """
    first, second = (_counts(half, vocab_size) for half in ids.tensor_split(2))

    def likelihood(added: float) -> float:
        return float(second @ _log_probability(first, added))

    added = max(SMOOTHING, key=likelihood)
    return _log_probability(_counts(ids, vocab_size), added).float(), added


def _counts(ids: Tensor, vocab_size: int) -> Tensor:
    return torch.bincount(ids, minlength=vocab_size).double()


def _log_probability(counts: Tensor, added: float) -> Tensor:
    return torch.log((counts + added) / (counts.sum() + added * len(counts)))
