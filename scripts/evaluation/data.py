"""What is evaluated: multiple-choice items and a text, from files (--data-dir) or the public data sets.

Files: `TASK.jsonl.gz` with {"id", "query", "choices", "gold"} a line, `wikitext2_test.txt.gz`. Without them the same
items are made from the public data sets through the `datasets` package, where there is a network.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adakv_model.errors import UserError, first_line
from adakv_model.text_file import read_text

TEXT_TASK = "wikitext2"
MIN_TOKENS = 40_000  # of text, unless --tokens says otherwise
REMEDY = "pass the folder of the data files with --data-dir"
FILES = {
    "hellaswag": "hellaswag_dev.jsonl.gz",
    "arc_easy": "arc_easy.jsonl.gz",
    "openbook_qa": "openbook_qa.jsonl.gz",
    "piqa": "piqa.jsonl.gz",
    TEXT_TASK: "wikitext2_test.txt.gz",
}
TASKS = (TEXT_TASK, *(name for name in FILES if name != TEXT_TASK))


@dataclass(frozen=True)
class Item:
    """One multiple-choice item; `gold` indexes `choices`. Each choice is scored as " " + choice after the query."""

    id: str
    query: str
    choices: tuple[str, ...]
    gold: int


@dataclass(frozen=True)
class Items:
    """Items of a task and the digest of what they were read from."""

    items: list[Item]
    sha256: str


@dataclass(frozen=True)
class Text:
    """A text and the SHA-256 of its UTF-8 bytes."""

    text: str
    sha256: str


def check_task(task: str) -> None:
    """Raises UserError."""
    if task not in TASKS:
        raise UserError(f"unknown --task {task!r}: one of {', '.join(TASKS)}")


def load_items(task: str, data_dir: Path | None) -> Items:
    """Items of a multiple-choice task. Raises UserError for missing or malformed data."""
    check_task(task)
    if data_dir is None:
        items = [_PUBLIC[task].item(row) for row in _public_rows(task)]
        return Items(items, _digest(items))
    path = data_dir / FILES[task]
    lines = [line for line in read_text(path, REMEDY).splitlines() if line.strip()]
    items = [_parse(line, path, number) for number, line in enumerate(lines, 1)]
    if not items:
        raise UserError(f"{path} has no items")
    return Items(items, _digest(items))


def load_text(data_dir: Path | None, name: str = FILES[TEXT_TASK]) -> Text:
    """The evaluation text. Raises UserError if it is missing or not UTF-8."""
    text = (
        "".join(row["text"] for row in _public_rows(TEXT_TASK))
        if data_dir is None
        else read_text(data_dir / name, REMEDY)
    )
    return Text(text, hashlib.sha256(text.encode()).hexdigest())


def _parse(line: str, path: Path, number: int) -> Item:
    try:
        row = json.loads(line)
        item = Item(str(row.get("id", number)), row["query"], tuple(row["choices"]), int(row["gold"]))
        text_only = all(isinstance(part, str) for part in (item.query, *item.choices))
    except (json.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} line {number} is not an item with query, choices and gold ({error})") from error
    if not text_only or not item.query or len(item.choices) < 2 or not 0 <= item.gold < len(item.choices):
        raise UserError(f"{path} line {number} needs a query, two or more choices and a gold index among them")
    return item


def _digest(items: Iterable[Item]) -> str:
    content = json.dumps([[i.id, i.query, i.choices, i.gold] for i in items], ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()


@dataclass(frozen=True)
class _Public:
    """Where a task is published and how its rows become items (the prompts of the data files)."""

    path: str
    config: str | None
    split: str
    item: Callable[[Mapping[str, Any]], Item]


def hellaswag_item(row: Mapping[str, Any]) -> Item:
    """Activity label, context and endings without WikiHow's brackets, as lm-eval's `hellaswag` makes them."""
    query = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    return Item(str(row["ind"]), _clean(query), tuple(map(_clean, row["endings"])), int(row["label"]))


def arc_item(row: Mapping[str, Any]) -> Item:
    choices = row["choices"]
    gold = list(choices["label"]).index(row["answerKey"])
    return Item(str(row["id"]), f"Question: {row['question']}", tuple(choices["text"]), gold)


def openbook_qa_item(row: Mapping[str, Any]) -> Item:
    choices = row["choices"]
    gold = list(choices["label"]).index(row["answerKey"].strip())
    return Item(str(row["id"]), row["question_stem"], tuple(choices["text"]), gold)


def piqa_item(row: Mapping[str, Any]) -> Item:
    return Item(row["goal"], f"Question: {row['goal']}\n", (row["sol1"], row["sol2"]), int(row["label"]))


def _no_item(row: Mapping[str, Any]) -> Item:
    raise TypeError("a text has no items")


_PUBLIC = {
    "hellaswag": _Public("Rowan/hellaswag", None, "validation", hellaswag_item),
    "arc_easy": _Public("allenai/ai2_arc", "ARC-Easy", "test", arc_item),
    "openbook_qa": _Public("allenai/openbookqa", "main", "test", openbook_qa_item),
    "piqa": _Public("baber/piqa", None, "validation", piqa_item),
    TEXT_TASK: _Public("Salesforce/wikitext", "wikitext-2-v1", "test", _no_item),
}


def _public_rows(task: str) -> Iterable[Mapping[str, Any]]:
    source = _PUBLIC[task]
    remedy = "pass --data-dir with the files of this task"
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"the `datasets` package is not installed (pip install '.[eval]'): or {remedy}") from error
    try:
        return datasets.load_dataset(source.path, source.config, split=source.split)
    except Exception as error:  # hub, network and cache failures have no common base class
        raise UserError(f"cannot download {source.path} ({first_line(error)}): {remedy}") from error


def _clean(text: str) -> str:
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")
