"""What scores token sequences: the simulated cache, and an exported program behind the same interface."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from adakv_model.checkpoints.load import Checkpoint
from adakv_model.errors import UserError
from adakv_model.runtime.artifact import Artifact
from adakv_model.simulation.scoring import Scored, Simulator


class Scorer(Protocol):
    """Scores sequences from position 0, each as if it were alone in its cache."""

    def score(self, tokens: Tensor, lengths: Tensor | None = None) -> Scored:
        """tokens: int64 [B, T], right padded where lengths int64 [B] differ."""
        ...

    def score_continuations(
        self, prefix: Tensor, continuations: Sequence[Sequence[Sequence[int]]]
    ) -> list[list[Scored]]:
        """prefix: int64 [B, T0]; for each, equally many continuations. One row a result, of its own tokens only."""
        ...


class Generator(Scorer, Protocol):
    """A scorer that can also continue a text."""

    def greedy(self, prompt: Sequence[int], limit: int, stop: Callable[[list[int]], bool]) -> list[int]:
        """Up to `limit` likeliest tokens after the prompt, one by one, until `stop(tokens so far)`."""
        ...


class SimulatorScorer(Simulator):
    """The simulated cache, which can also generate."""

    def greedy(self, prompt: Sequence[int], limit: int, stop: Callable[[list[int]], bool]) -> list[int]:
        """See `Generator`."""
        new: list[int] = []
        self.cache.reset(1)
        fed = list(prompt)
        while len(new) < limit:
            self.feed(torch.tensor([fed]))
            assert self.cache.last_logits is not None
            new.append(int(self.cache.last_logits[0].argmax()))
            if stop(new) or self.cache.length >= self.cache.context:
                break
            fed = new[-1:]
        return new


class ArtifactScorer:
    """The `.pte` of an artifact folder in this process's ExecuTorch runtime, one sequence at a time."""

    def __init__(self, artifact: Artifact) -> None:
        artifact.require_all_logits()
        self.plan = artifact.plan
        self._model = artifact.load()

    def score(self, tokens: Tensor, lengths: Tensor | None = None) -> Scored:
        sizes = [tokens.shape[1]] * len(tokens) if lengths is None else [int(n) for n in lengths]
        rows = [self._sequence(row[:size].tolist()) for row, size in zip(tokens, sizes, strict=True)]
        return self._stacked(rows)

    def score_continuations(
        self, prefix: Tensor, continuations: Sequence[Sequence[Sequence[int]]]
    ) -> list[list[Scored]]:
        start = prefix.shape[1]
        groups = []
        for row, group in zip(prefix.tolist(), continuations, strict=True):
            whole = [self._sequence([*row, *continuation]) for continuation in group]
            groups.append([self._stacked([(p[start:], g[start:], *rest)]) for p, g, *rest in whole])
        return groups

    def greedy(self, prompt: Sequence[int], limit: int, stop: Callable[[list[int]], bool]) -> list[int]:
        self._model.reset()
        logits = self._model.prefill(list(prompt))[-1]
        new: list[int] = []
        while len(new) < limit:
            new.append(int(logits.argmax()))
            if stop(new) or self._model.position >= self.plan.context:
                break
            logits = self._model.step(new[-1:])[-1]
        return new

    def _sequence(self, tokens: list[int]) -> tuple[Tensor, Tensor, float, list[int]]:
        model = self._model
        model.reset()
        log_probs, greedy = torch.zeros(len(tokens)), torch.zeros(len(tokens), dtype=torch.bool)
        start = 0
        for count in self.plan.chunks(0, len(tokens)):
            logits = model.step(tokens[start : start + count])
            targets = torch.tensor(tokens[start + 1 : start + len(logits) + 1])
            predicted = slice(start + 1, start + 1 + len(targets))
            logits = logits[: len(targets)]
            chosen = logits.gather(1, targets.unsqueeze(1)).squeeze(1)
            log_probs[predicted] = chosen - torch.logsumexp(logits, dim=1)
            greedy[predicted] = logits.argmax(1) == targets
            start += count
        counts = model.tier_counts()
        return log_probs, greedy, self.plan.stored_bits(counts, len(tokens)), counts

    def _stacked(self, rows: list[Any]) -> Scored:
        width = max(len(row[0]) for row in rows)
        log_probs, greedy = torch.zeros(len(rows), width), torch.zeros(len(rows), width, dtype=torch.bool)
        for index, row in enumerate(rows):
            log_probs[index, : len(row[0])], greedy[index, : len(row[1])] = row[0], row[1]
        return Scored(
            log_probs=log_probs,
            greedy=greedy,
            stored_bits=torch.tensor([row[2] for row in rows]),
            tier_counts=torch.tensor([row[3] for row in rows]),
        )


def open_artifact(folder: Path, checkpoint: Checkpoint) -> Artifact:
    """The artifact, made from this checkpoint's weights, with logits of every token. Raises UserError for another."""
    artifact = Artifact(folder)
    artifact.require_all_logits()
    made_from = artifact.manifest["model"]["source"]
    if made_from.get("sha256") != checkpoint.source.get("sha256"):
        raise UserError(
            f"{folder} was exported from other weights than '{checkpoint.name}': name them with --model or --checkpoint"
        )
    return artifact
