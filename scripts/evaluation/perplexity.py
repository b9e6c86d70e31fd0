"""Losses of a text cut into windows, one record a window."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adakv_model.corpus import window_starts
from adakv_model.errors import UserError
from evaluation.scorers import Scorer
from evaluation.store import ItemStore


@dataclass(frozen=True)
class Window:
    """Non-overlapping tokens int64 [T] of the text, the first at `start`; its key in a store is `start`."""

    start: int
    tokens: Tensor

    @property
    def key(self) -> str:
        return str(self.start)


def cut(ids: Tensor, context: int, tokens: int, limit: int | None = None) -> list[Window]:
    """Windows of `context` tokens, at least `tokens` in all, spread evenly over the text.

    limit: only the first so many of them. Raises UserError where the text is too short.
    """
    if context < 2:
        raise UserError(f"--context {context} must be at least 2")
    wanted, available = -(-tokens // context), len(ids) // context
    if wanted > available:
        raise UserError(
            f"the text has {len(ids):,} tokens, fewer than {wanted} windows of {context}: lower --tokens or --context"
        )
    starts = window_starts(available, wanted, context)[:limit]
    return [Window(start, ids[start : start + context]) for start in starts]


def score_windows(
    scorer: Callable[[], Scorer],
    windows: Sequence[Window],
    store: ItemStore,
    batch: int,
    advance: Callable[[int], None] = lambda tokens: None,
) -> None:
    """Make the missing records: `nll` of positions 1 and later (nats), `bits`, `tiers` at the window's end."""
    missing = [window for window in windows if window.key not in store]
    if not missing:
        return
    model = scorer()
    for begin in range(0, len(missing), batch):
        together = missing[begin : begin + batch]
        scored = model.score(torch.stack([window.tokens for window in together]))
        for row, window in enumerate(together):
            record = {
                "nll": [round(-value, 6) for value in scored.log_probs[row, 1:].tolist()],
                "bits": float(scored.stored_bits[row]),
                "tiers": scored.tier_counts[row].tolist(),
            }
            store.add(window.key, record)
            advance(len(window.tokens))
