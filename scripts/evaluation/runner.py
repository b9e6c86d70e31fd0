"""Scores one task under any number of policies, each item once, and assembles the results."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from adakv_model.artifact import Artifact
from adakv_model.checkpoint_sources import default_cache_dir
from adakv_model.checkpoints import Checkpoint
from adakv_model.text import codec_for
from evaluation import choices, measurement, perplexity
from evaluation.data import TEXT_TASK, load_items, load_text
from evaluation.measurement import Measurement
from evaluation.policies import REFERENCE, STATIC_WIDTHS, PolicySpec, Tables
from evaluation.scorers import ArtifactScorer, Scorer
from evaluation.store import ItemStore

console = Console(stderr=True, highlight=False)

MIN_TOKENS = 40_000  # of text, unless --tokens says otherwise
BATCH_TOKENS = 2048


@dataclass(frozen=True)
class Task:
    """A task's data and how much of it to use. limit: items, or windows of text; tokens: of text."""

    name: str
    data_dir: Path | None = None
    context: int = 2048
    tokens: int = MIN_TOKENS
    limit: int | None = None


@dataclass
class Evaluator:
    """Makes and reads per-item results of one checkpoint on one task. Raises UserError for bad data."""

    checkpoint: Checkpoint
    tables: Tables
    task: Task
    work_dir: Path | None = None
    batch_tokens: int = BATCH_TOKENS
    fresh: bool = False
    speed: dict[str, float] = field(default_factory=dict)  # tokens per second of what this process computed

    def __post_init__(self) -> None:
        codec = codec_for(self.checkpoint)
        if self.task.name == TEXT_TASK:
            text = load_text(self.task.data_dir)
            ids = torch.tensor(codec.encode(text.text), dtype=torch.int64)
            self.windows = perplexity.cut(ids, self.task.context, self.task.tokens, self.task.limit)
            self._data = {"text": text.sha256, "context": self.task.context}
        else:
            loaded = load_items(self.task.name, self.task.data_dir)
            self.items = choices.encode_items(loaded.items[: self.task.limit], codec, self.task.context)
            self._data = {"items": loaded.sha256}

    def policy(self, spec: PolicySpec) -> Measurement:
        """A policy in the simulated cache."""
        return self.measure(
            spec.title, spec.identity(self.tables), lambda: spec.simulator(self.checkpoint, self.tables)
        )

    def artifact(self, artifact: Artifact) -> Measurement:
        """An exported program."""
        program = artifact.manifest["files"][artifact.program.name]["sha256"]
        return self.measure(f"artifact-{program[:8]}", {"program": program}, lambda: ArtifactScorer(artifact))

    def measure(self, title: str, policy: dict[str, Any], scorer: Callable[[], Scorer]) -> Measurement:
        """Score what is missing, with a progress bar, and read all of it."""
        weights = self.checkpoint.source.get("sha256") or self.checkpoint.source
        identity = {"task": self.task.name, **self._data, "checkpoint": weights, "policy": policy}
        folder = self.work_dir or default_cache_dir() / "evaluation"
        store = ItemStore(folder, f"{self.task.name}-{title}", identity)
        if self.fresh:
            store.clear()
        is_text = self.task.name == TEXT_TASK
        total = (
            sum(len(w.tokens) for w in self.windows if w.key not in store)
            if is_text
            else sum(item.tokens for item in self.items if item.key not in store)
        )
        columns = (BarColumn(), TextColumn("{task.completed:,.0f}/{task.total:,.0f} tokens"))
        started = time.perf_counter()
        with Progress(
            TextColumn("{task.description}"), *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console,
            transient=True, disable=not total or not console.is_terminal,
        ) as progress:  # fmt: skip
            bar = progress.add_task(f"{self.task.name} {title}", total=total)

            def advance(tokens: int) -> None:
                progress.advance(bar, tokens)

            if is_text:
                perplexity.score_windows(scorer, self.windows, store, self.batch_tokens, advance)
            else:
                choices.score_items(scorer, self.items, store, advance)
        if total:
            self.speed[title] = total / (time.perf_counter() - started)
        return measurement.of_windows(self.windows, store) if is_text else measurement.of_items(self.items, store)

    def static_neighbours(self, spec: PolicySpec, bits: float) -> list[tuple[str, Measurement]]:
        """The widest static cache of at most `bits` total bits and the next wider one (the same at the ends)."""

        def at(index: int) -> tuple[str, Measurement]:
            name = f"static-{STATIC_WIDTHS[index]}"
            return name, self.policy(spec.named(name))

        low = max((i for i, width in enumerate(STATIC_WIDTHS) if width < bits), default=0)
        while low > 0 and at(low)[1].total_bits > bits:
            low -= 1
        high = min(low + 1, len(STATIC_WIDTHS) - 1)
        while high + 1 < len(STATIC_WIDTHS) and at(high)[1].total_bits <= bits:
            low, high = high, high + 1
        return [at(low), at(high)]


def compare(
    evaluator: Evaluator,
    mine: Measurement,
    fp16: Measurement,
    spec: PolicySpec,
    *,
    static: bool,
    against: tuple[PolicySpec, ...] = (),
) -> dict[str, Any]:
    """Metrics of `mine`, differences to fp16 (flat keys), to static at equal bits (*_static) and to others."""
    out = measurement.metrics(mine) | measurement.differences(mine, fp16)
    if static:
        low, high = evaluator.static_neighbours(spec, mine.total_bits)
        out |= measurement.against_static(mine, fp16, low, high)
    if against:
        others = {other.title: evaluator.policy(other) for other in against}
        out["against"] = {
            name: measurement.differences(mine, other) | {"total_bits": other.total_bits}
            for name, other in others.items()
        }
    return out


def has_static_comparison(spec: PolicySpec) -> bool:
    """Whether static at equal bits says anything about this policy."""
    return spec.name != REFERENCE and not spec.name.startswith("static-")
