"""Data sets of the tasks in this folder, from the files that scripts/evaluate.py reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets

from adakv_model.errors import UserError
from evaluation.data import TEXT_TASK, load_items, load_text

TEST = "test"


def load(file_task: str, data_dir: str | None = None, **ignored: Any) -> dict[str, datasets.Dataset]:
    """{"test": rows}; data_dir comes from --metadata data_dir=DIR. Raises UserError."""
    if data_dir is None:
        raise UserError("local tasks read the files of a folder: pass --metadata data_dir=DIR")
    if file_task == TEXT_TASK:
        return {TEST: datasets.Dataset.from_list([{"page": load_text(Path(data_dir)).text}])}
    items = load_items(file_task, Path(data_dir)).items
    rows = [{"query": item.query, "choices": list(item.choices), "gold": item.gold} for item in items]
    return {TEST: datasets.Dataset.from_list(rows)}


def perplexity(doc: dict[str, str], results: tuple[float]) -> dict[str, tuple[float, int]]:
    """Per word and byte of the text as it is in the file."""
    (loglikelihood,) = results
    words, size = len(doc["page"].split()), len(doc["page"].encode())
    return {
        "word_perplexity": (loglikelihood, words),
        "byte_perplexity": (loglikelihood, size),
        "bits_per_byte": (loglikelihood, size),
    }
