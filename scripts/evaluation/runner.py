"""Scores one task under any number of policies, each item once, and assembles the results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from adakv_model.runtime.artifact import Artifact
from adakv_model.runtime.text import codec_for
from evaluation import choices, measurement, perplexity
from evaluation.bench import Bench
from evaluation.data import MIN_TOKENS, TEXT_TASK, load_items, load_text
from evaluation.measurement import Measurement
from evaluation.policies import REFERENCE, STATIC_WIDTHS, PolicySpec
from evaluation.scorers import ArtifactScorer, Scorer


@dataclass(frozen=True)
class Task:
    """A task's data and how much of it to use. limit: items, or windows of text; tokens: of text."""

    name: str
    data_dir: Path | None = None
    context: int = 2048
    tokens: int = MIN_TOKENS
    limit: int | None = None


class Evaluator:
    """Makes and reads per-item results of one checkpoint on one task. Raises UserError for bad data."""

    def __init__(self, bench: Bench, task: Task) -> None:
        self.bench, self.task = bench, task
        codec = codec_for(bench.checkpoint)
        self._data: dict[str, Any] = {"task": task.name}
        if task.name == TEXT_TASK:
            text = load_text(task.data_dir)
            ids = torch.tensor(codec.encode_start(text.text), dtype=torch.int64)
            self.windows = perplexity.cut(ids, task.context, task.tokens, task.limit)
            self._data |= {"text": text.sha256, "context": task.context}
        else:
            loaded = load_items(task.name, task.data_dir)
            self.items = choices.encode_items(loaded.items[: task.limit], codec, task.context)
            self._data |= {"items": loaded.sha256}

    @property
    def clusters(self) -> int:
        """Windows of text, or items."""
        return len(self.windows) if self.task.name == TEXT_TASK else len(self.items)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return self.task.context if self.task.name == TEXT_TASK else max(item.longest for item in self.items)

    def policy(self, spec: PolicySpec) -> Measurement:
        """A policy in the simulated cache."""
        bench = self.bench
        return self._measure(
            spec.title,
            spec.identity(bench.tables),
            lambda: spec.simulator(bench.checkpoint, bench.tables, self.longest),
        )

    def artifact(self, artifact: Artifact) -> Measurement:
        """An exported program."""
        program = artifact.manifest["files"][artifact.program.name]["sha256"]
        return self._measure(f"artifact-{program[:8]}", {"program": program}, lambda: ArtifactScorer(artifact))

    def _measure(self, title: str, policy: dict[str, Any], scorer: Callable[[], Scorer]) -> Measurement:
        """Score what is missing and read all of it."""
        title = f"{self.task.name} {title}"
        store = self.bench.store(title, self._data, policy)
        if self.task.name == TEXT_TASK:
            missing = sum(len(window.tokens) for window in self.windows if window.key not in store)
            with self.bench.progress(title, missing) as advance:
                perplexity.score_windows(scorer, self.windows, store, self.bench.batch(self.task.context), advance)
            return measurement.of_windows(self.windows, store)
        missing = sum(item.tokens for item in self.items if item.key not in store)
        with self.bench.progress(title, missing) as advance:
            choices.score_items(scorer, self.items, store, self.bench.batch(self.longest), advance)
        return measurement.of_items(self.items, store)

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


def header(evaluator: Evaluator, spec: PolicySpec) -> dict[str, Any]:
    """What identifies a result: task, checkpoint, policy and options."""
    checkpoint, task = evaluator.bench.checkpoint, evaluator.task
    return {
        "task": task.name,
        "model": checkpoint.name,
        "checkpoint": checkpoint.source.get("sha256"),
        "policy": spec.name,
        "kv_bits": spec.kv_bits,
        "context": task.context,
        "window": spec.window,
        "window_bits": spec.window_bits,
        "limit": task.limit,
    }


def evaluate_policy(
    evaluator: Evaluator, spec: PolicySpec, *, static: bool = True, against: tuple[PolicySpec, ...] = ()
) -> dict[str, Any]:
    """The result of one simulated policy, as results files hold it but for `command`."""
    fp16 = evaluator.policy(spec.named(REFERENCE))
    mine = evaluator.policy(spec)
    comparable = static and spec.name != REFERENCE and not spec.name.startswith("static-")
    compared = compare(evaluator, mine, fp16, spec, static=comparable, against=against)
    speed = evaluator.bench.speed.get(f"{evaluator.task.name} {spec.title}")
    allocated = spec.make(evaluator.bench.checkpoint.config, evaluator.bench.tables).bits_per_value
    return header(evaluator, spec) | compared | {"allocated_bits": allocated, "tokens_per_second": speed}
