"""Loss by position in a long text, and retention of what fp16 retrieves, of one policy against fp16."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from evaluation.needles import Needle
from evaluation.perplexity import Window
from evaluation.statistics import clustered_mean, wilson
from evaluation.store import ItemStore


def buckets(context: int) -> list[tuple[int, int]]:
    """Half-open ranges of positions that double in width: 1-128, 128-256, 256-512, ..., up to `context`."""
    edges = [1]
    while edges[-1] < context:
        edges.append(min(max(128, 2 * edges[-1]), context))
    return list(pairwise(edges))


def by_position(windows: Sequence[Window], policy: ItemStore, fp16: ItemStore) -> list[dict[str, Any]]:
    """One row a bucket: perplexities, and the loss difference with its standard error over windows."""
    mine, theirs = (np.array([store[w.key]["nll"] for w in windows]) for store in (policy, fp16))
    rows = []
    for begin, end in buckets(len(windows[0].tokens)):
        part = slice(begin - 1, end - 1)  # nothing predicts position 0
        counts = np.full(len(windows), float(end - begin))
        loss, reference = (clustered_mean(x[:, part].sum(1), counts) for x in (mine, theirs))
        difference = clustered_mean((mine - theirs)[:, part].sum(1), counts)
        rows.append(
            {
                "begin": begin,
                "end": end,
                "tokens": int(counts.sum()),
                "ppl": math.exp(loss.value),
                "ppl_fp16": math.exp(reference.value),
                "loss_diff": difference.value,
                "loss_diff_se": difference.se,
            }
        )
    return rows


def retrieval(needles: Sequence[Needle], policy: ItemStore, fp16: ItemStore) -> list[dict[str, Any]]:
    """One row for each kind and length, and one for each of its depths (`depth` None: all of them)."""
    groups: dict[tuple[str, int, float | None], list[Needle]] = defaultdict(list)
    for needle in needles:
        groups[needle.kind, needle.length, None].append(needle)
        groups[needle.kind, needle.length, needle.depth].append(needle)
    return [
        {"kind": kind, "length": length, "depth": depth, **retention(members, policy, fp16)}
        for (kind, length, depth), members in groups.items()
    ]


def retention(needles: Sequence[Needle], policy: ItemStore, fp16: ItemStore) -> dict[str, Any]:
    """Counts by both measures: `greedy`, decoding writes the right answer; `rank`, it is likelier than the others.

    Retention is the share of what fp16 finds that the policy finds too, with a 95 % Wilson interval.
    """
    out: dict[str, Any] = {"prompts": len(needles)}
    for measure, found in (("greedy", _decoded), ("rank", _first)):
        theirs = [needle for needle in needles if found(fp16[needle.key])]
        kept = sum(found(policy[needle.key]) for needle in theirs)
        low, high = wilson(kept, len(theirs))
        out[measure] = {
            "fp16": len(theirs),
            "policy": sum(found(policy[needle.key]) for needle in needles),
            "both": kept,
            "retention": kept / len(theirs) if theirs else None,
            "low": low,
            "high": high,
        }
    return out


def _decoded(record: dict[str, Any]) -> bool:
    return bool(record["greedy"][0])


def _first(record: dict[str, Any]) -> bool:
    right, *others = record["log_likelihood"]
    return right > max(others)
