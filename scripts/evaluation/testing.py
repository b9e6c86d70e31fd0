"""Data files for the tests: items and a text in the words of training/testing.py's checkpoint."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

from evaluation.data import FILES, TEXT_TASK
from training.testing import WORDS

ITEMS = 12


def write_data(folder: Path) -> None:
    """Every file that --data-dir needs: 12 items a task, 640 words of text."""
    draw = random.Random(0)

    def words(count: int) -> str:
        return " ".join(f"w{draw.randrange(WORDS)}" for _ in range(count))

    for task, name in FILES.items():
        with gzip.open(folder / name, "wt", encoding="utf-8") as file:
            if task == TEXT_TASK:
                file.write(words(640))
                continue
            for index in range(ITEMS):
                choices = [words(draw.randrange(1, 6)) for _ in range(4)]
                item = {"id": index, "query": words(30), "choices": choices, "gold": draw.randrange(4)}
                file.write(json.dumps(item) + "\n")


def arguments(checkpoint: Path, data: Path, out: Path, **changes: Any) -> list[str]:
    """Command line of evaluate.py for the tiny checkpoint, everything written below `out`."""
    options: dict[str, Any] = {
        "task": "piqa",
        "policy": "static-4",
        "checkpoint": checkpoint,
        "data-dir": data,
        "context": 64,
        "tokens": 256,
        "window": 8,
        "json": out / "out.json",
        "results": out / "results.jsonl",
        "work-dir": out / "work",
        **changes,
    }
    return [str(x) for name, value in options.items() if value is not None for x in (f"--{name}", value)]
