"""Scores texts under a cache policy: log probabilities of their tokens, batched, without keeping logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adakv_model.checkpoints.weights import Checkpoint
from adakv_model.model import build_model
from adakv_model.simulation.policies import Policy
from adakv_model.simulation.simulator import SimulatedCache
from adakv_model.tables import CalibrationTables
from adakv_model.window import cut, oldest

OnLogits = Callable[[int, Tensor], None]  # position of the first row, logits [B, T, V] that follow those tokens


@dataclass(frozen=True)
class Scored:
    """log_probs: float32 [B, T], log p(token t | tokens before), 0 at position 0 and in padding. greedy: bool [B, T],
    whether token t was the most probable. stored_bits: float32 [B], bits per stored value at the end of each
    sequence, scales, sink and window included. tier_counts: int64 [B, K]."""

    log_probs: Tensor
    greedy: Tensor
    stored_bits: Tensor
    tier_counts: Tensor


class Simulator:
    """A model over a simulated cache. Weights are shared with the checkpoint, not copied."""

    def __init__(
        self, checkpoint: Checkpoint, policy: Policy, tables: CalibrationTables, context: int | None = None
    ) -> None:
        self.policy = policy
        length = context or (policy.plan.context if policy.plan else sum(policy.capacities) + policy.window)
        self.cache = SimulatedCache(
            checkpoint.config,
            policy.rows,
            context=length,
            window=policy.window,
            lag=policy.lag,
            capacities=policy.capacities,
            token_log_frequency=tables.token_log_frequency,
            decide=policy.decide,
            keeps_sink=policy.keeps_sink,
            departure=policy.departure,
        )
        self.model = build_model(checkpoint.config, checkpoint.weights, self.cache, prescale_norm=False)

    @torch.no_grad()
    def feed(self, tokens: Tensor, on_logits: OnLogits | None = None) -> None:
        """Append int64 [B, T] to what the cache holds."""
        start = position = self.cache.length
        departure = 1 if self.policy.decide is None else self.policy.departure
        for count in cut(start, tokens.shape[1], self.policy.chunk, departure):
            chunk = tokens[:, position - start : position - start + count]
            logits = self.model(chunk, torch.tensor([position]))
            if on_logits is not None:
                on_logits(position, logits)
            position += count

    def score(self, tokens: Tensor, lengths: Tensor | None = None, on_logits: OnLogits | None = None) -> Scored:
        """One pass over int64 [B, T] from position 0; padded on the right where `lengths` [B] says so."""
        self.cache.reset(tokens.shape[0])
        self.feed(tokens, on_logits)
        return self._scored(0, tokens.shape[1], lengths)

    def score_continuations(
        self, prefix: Tensor, continuations: Sequence[Sequence[Sequence[int]]]
    ) -> list[list[Scored]]:
        """Prefixes int64 [B, T0] of one length; for each, its continuations, scored as if each were alone.

        The prefix is computed once. Every Scored has one row, of the continuation's tokens only.
        """
        flat = [c for group in continuations for c in group]
        counts = {len(group) for group in continuations}
        if len(counts) != 1:
            raise ValueError("every prefix needs the same number of continuations")
        self.cache.reset(prefix.shape[0])
        self.feed(prefix)
        self.cache.repeat(counts.pop())
        lengths = torch.tensor([len(c) for c in flat])
        padded = torch.zeros(len(flat), int(lengths.max()), dtype=torch.int64)
        for row, continuation in zip(padded, flat, strict=True):
            row[: len(continuation)] = torch.tensor(continuation)
        self.feed(padded)
        start = prefix.shape[1]
        whole = self._scored(start, start + padded.shape[1], lengths + start)
        parts = [
            Scored(whole.log_probs[i : i + 1, :n], whole.greedy[i : i + 1, :n], *(x[i : i + 1] for x in rest))
            for rest in [(whole.stored_bits, whole.tier_counts)]
            for i, n in enumerate(lengths.tolist())
        ]
        groups = iter(parts)
        return [[next(groups) for _ in group] for group in continuations]

    def _scored(self, start: int, end: int, lengths: Tensor | None) -> Scored:
        cache, policy = self.cache, self.policy
        lengths = torch.full((cache.batch,), end) if lengths is None else lengths
        real = torch.arange(start, end) < lengths.unsqueeze(1)
        newest = oldest(lengths - 1, policy.window, policy.departure) - 1  # of the tokens that left
        left = torch.arange(cache.context) <= newest.unsqueeze(1)
        left[:, : int(policy.keeps_sink)] = False
        marks = torch.nn.functional.one_hot(cache.tiers, len(policy.capacities))
        counts = (marks * left.unsqueeze(2)).sum(1)
        pairs = zip(counts.tolist(), lengths.tolist(), strict=True)
        bits = torch.tensor([policy.stored_bits(c, n) for c, n in pairs])
        log_probs = torch.where(real, -cache.seen[2, :, start:end], torch.zeros(()))
        return Scored(log_probs, cache.greedy[:, start:end] & real, bits, counts)
