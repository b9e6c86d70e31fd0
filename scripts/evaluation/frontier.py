"""The frontier of a results file: points by family, a markdown table, a plot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adakv_model.whole_file import write_picture
from evaluation.results import with_error

#: Families in drawing order: label, colour, marker, whether their points form a curve.
STYLES = {
    "adaptive": ("adaptive (learned)", "#c1272d", "o", True),
    "adaptive-fast": ("adaptive, fast features", "#e0555a", ".", True),
    "adaptive-paper": ("adaptive, the paper's features", "#f0a0a3", "p", True),
    "adaptive-all": ("adaptive, all features", "#7d1a1e", "h", True),
    "tables": ("tables, no choice by token", "#e08a00", "^", True),
    "static": ("static (plain age rule)", "#1f4e9c", "s", True),
    "random": ("random", "#8c8c8c", "x", True),
    "rarity": ("rarity", "#7b5ea7", "v", True),
    "entropy": ("entropy", "#2a9d8f", "<", True),
    "recency": ("recency", "#6b8e23", ">", True),
    "kivi": ("asymmetric per head", "#3aa0d8", "D", True),
    "naive": ("symmetric per token", "#444444", "P", False),
    "paper": ("{2, 4, 8, 16} per token", "#b5651d", "*", False),
}
FLOOR = 1e-4  # nats; smaller differences are drawn here, as a logarithmic axis has no zero


@dataclass(frozen=True)
class Point:
    """One policy at one context; loss difference to fp16 in nats a token with its paired standard error."""

    context: int
    family: str
    title: str
    bits: float
    loss_diff: float
    se: float
    row: dict[str, Any]


def points(rows: Sequence[dict[str, Any]], task: str, contexts: Sequence[int]) -> list[Point]:
    """Simulated policies of a task at these contexts, of several runs the one with most tokens; by bits."""
    best: dict[tuple, dict[str, Any]] = {}
    for row in rows:
        if row["task"] != task or row.get("artifact") or row["context"] not in contexts or row["policy"] == "fp16":
            continue
        key = (row["context"], row["policy"], row["kv_bits"], row["window"], row["window_bits"])
        if key not in best or row["tokens"] >= best[key]["tokens"]:
            best[key] = row
    made = [
        Point(
            context=row["context"],
            family=row["policy"] if row["policy"] in STYLES else row["policy"].split("-")[0],
            title=row["policy"] + (f" {row['kv_bits']:g}" if row["kv_bits"] else ""),
            bits=row["total_bits"],
            loss_diff=row["loss_diff"],
            se=row["loss_diff_se"] or math.nan,
            row=row,
        )
        for row in best.values()
    ]
    return sorted(made, key=lambda p: (p.context, p.bits))


def markdown(chosen: Sequence[Point]) -> str:
    """One table a context. Perplexity increase in percent; differences in nats a token, with standard errors."""
    lines = []
    for context in sorted({p.context for p in chosen}):
        here = [p for p in chosen if p.context == context]
        lines += [
            f"Context {context:,}, {here[0].row['n']} windows, {here[0].row['tokens']:,} tokens",
            "",
            "| policy | total bits | perplexity | against fp16 | loss - fp16 | loss - static at equal bits |",
            "|---|---|---|---|---|---|",
        ]
        for p in here:
            difference = p.row.get("loss_diff_static")
            static = "" if difference is None else _difference(difference, p.row.get("loss_diff_static_se"))
            lines.append(
                f"| {p.title} | {p.bits:.2f} | {p.row['ppl']:.2f} | {100 * math.expm1(p.loss_diff):+.2f} % |"
                f" {_difference(p.loss_diff, p.se)} | {static} |"
            )
        lines.append("")
    return "\n".join(lines)


def table(chosen: Sequence[Point]) -> list[dict[str, Any]]:
    """The points as JSON."""
    keys = ("context", "policy", "kv_bits", "total_bits", "ppl", "loss_diff", "loss_diff_se", "n", "tokens")
    more = ("loss_diff_static", "loss_diff_static_se", "static_reference", "window", "window_bits", "command")
    return [{key: p.row.get(key) for key in (*keys, *more)} for p in chosen]


def plot(chosen: Sequence[Point], path: Path, title: str, max_bits: float) -> None:
    """One panel a context, shared axes; families as curves, single policies as marks."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    shown = [p for p in chosen if p.bits <= max_bits]
    contexts = sorted({p.context for p in shown})
    figure, axes = plt.subplots(
        1, len(contexts), figsize=(1.2 + 3.9 * len(contexts), 4.6), sharex=True, sharey=True, squeeze=False
    )
    for axis, context in zip(axes[0], contexts, strict=True):
        for family, (label, colour, marker, line) in STYLES.items():
            mine = [p for p in shown if p.context == context and p.family == family]
            if mine:
                _draw(axis, mine, label, colour, marker, line)
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.set_title(f"context {context:,}", fontsize=10)
        axis.set_xlabel("total bits per K or V value")
        axis.grid(True, which="major", color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    axes[0][0].set_ylabel("loss above fp16 cache (nats per token)")
    handles = {label: h for axis in axes[0] for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    order = [style[0] for style in STYLES.values() if style[0] in handles]
    figure.legend(
        [handles[name] for name in order],
        order,
        loc="lower center",
        ncols=min(len(order), 5),
        frameon=False,
        fontsize=9,
    )
    figure.suptitle(title, fontsize=11)
    rows = -(-len(order) // 5)
    figure.tight_layout(rect=(0, 0.03 + 0.05 * rows, 1, 1))
    write_picture(path, figure, 150)
    plt.close(figure)


def _draw(axis: Any, mine: Sequence[Point], label: str, colour: str, marker: str, line: bool) -> None:
    heights = [max(p.loss_diff, FLOOR) for p in mine]
    # Error bars stop at the floor: below it there is nothing to draw on a logarithmic axis.
    down = [max(0.0, min(p.se, h - FLOOR)) if math.isfinite(p.se) else 0.0 for p, h in zip(mine, heights, strict=True)]
    up = [max(0.0, p.loss_diff + p.se - h) if math.isfinite(p.se) else 0.0 for p, h in zip(mine, heights, strict=True)]
    strong = mine[0].family in ("adaptive", "static")
    axis.errorbar(
        [p.bits for p in mine], heights, yerr=[down, up], label=label, color=colour, marker=marker,
        linestyle="-" if line and len(mine) > 1 else "none", linewidth=1.8 if strong else 1.0,
        markersize=5.5 if strong else 4.5, capsize=2, elinewidth=0.8, zorder=4 if strong else 3,
        alpha=1.0 if strong else 0.9,
    )  # fmt: skip


def _difference(value: float, se: float | None) -> str:
    return with_error(value, se, 4, sign="+")
