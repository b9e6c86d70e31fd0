"""A checkpoint with its tables, the stores of its results, and the progress bar."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, TimeElapsedColumn, TimeRemainingColumn

from adakv_model.checkpoints.load import Checkpoint, load_checkpoint
from adakv_model.digest import default_cache_dir
from adakv_model.errors import UserError
from adakv_model.terminal import Bars, make_console, text_column
from evaluation.policies import Tables, load_tables
from evaluation.store import ItemStore

console = make_console()

FLOAT_BYTES = 4
MAX_BATCH = 64  # sequences; with steps of 8 tokens, 512 rows a matrix product, where larger ones gain nothing


@dataclass
class Bench:
    """What every evaluation of one checkpoint shares. memory: GiB that the float K and V of one batch of
    sequences may take. fresh: forget stored results of what is asked for.

    speed: tokens per second of what this process computed, by title.
    """

    checkpoint: Checkpoint
    tables: Tables
    work_dir: Path | None = None
    memory: float = 2.0
    fresh: bool = False
    speed: dict[str, float] = field(default_factory=dict)
    _cleared: set[Path] = field(default_factory=set)

    def batch(self, context: int) -> int:
        """Sequences of `context` tokens to score at once."""
        config = self.checkpoint.config
        values = config.n_layers * config.n_kv_heads * 2 * config.head_dim
        fitting = self.memory * 2**30 / (FLOAT_BYTES * values * context)
        return max(1, min(MAX_BATCH, int(fitting)))

    def store(self, title: str, data: dict[str, Any], policy: dict[str, Any]) -> ItemStore:
        """Results of one policy on one data set."""
        weights = self.checkpoint.source.get("sha256") or self.checkpoint.source
        folder = self.work_dir or default_cache_dir() / "evaluation"
        store = ItemStore(folder, title.replace(" ", "-"), {**data, "checkpoint": weights, "policy": policy})
        if self.fresh and store.path not in self._cleared:
            store.clear()
            self._cleared.add(store.path)
        return store

    @contextmanager
    def progress(self, title: str, tokens: int) -> Iterator[Callable[[int], None]]:
        """A bar over `tokens`; yields what advances it. Nothing to do shows nothing."""
        started = time.perf_counter()
        columns = (BarColumn(), text_column("{task.completed:,.0f}/{task.total:,.0f} tokens"))
        if tokens and not console.is_terminal:
            console.print(f"{title}, {tokens:,} tokens ...")
        with Bars(
            text_column("{task.description}"), *columns, TimeElapsedColumn(), TimeRemainingColumn(),
            console=console, disable=not tokens or not console.is_terminal,
        ) as bar:  # fmt: skip
            task = bar.add_task(title, total=tokens)
            yield lambda count: bar.advance(task, count)
        if tokens:
            self.speed[title] = round(tokens / (time.perf_counter() - started), 1)


def open_bench(
    model: str, checkpoint: Path | None, tables: Path | None, work_dir: Path | None, **options: Any
) -> Bench:
    """Loads checkpoint and tables. Raises UserError."""
    loaded = load_checkpoint(model, path=checkpoint)
    if loaded.random:
        raise UserError("random weights have no accuracy: pass a real checkpoint")
    return Bench(loaded, load_tables(loaded, tables), work_dir, **options)
