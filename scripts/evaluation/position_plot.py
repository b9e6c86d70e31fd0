"""The plot of scripts/long_context.py: loss by position on the left, retrieval by length on the right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adakv_model.whole_file import write_picture

RED, GREY = "#c1272d", "#8c8c8c"
TITLES = {"passkey": "passkey in text", "key-value": "one fact among many"}


def plot(positions: Sequence[dict[str, Any]], retrieval: Sequence[dict[str, Any]], path: Path, name: str) -> None:
    """positions, retrieval: rows of positions.by_position and positions.retrieval; name: the policy's."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    overall = [row for row in retrieval if row["depth"] is None]
    kinds = list(dict.fromkeys(row["kind"] for row in overall))
    panels = bool(positions) + len(kinds)
    figure, axes = plt.subplots(1, panels, figsize=(0.6 + 4.2 * panels, 3.9), squeeze=False)
    rest = list(axes[0])
    if positions:
        _positions(rest.pop(0), positions, name)
    for axis, kind in zip(rest, kinds, strict=True):
        _retrieval(axis, [row for row in overall if row["kind"] == kind], TITLES[kind], name)
    for axis in axes[0]:
        axis.grid(True, color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    figure.tight_layout()
    write_picture(path, figure, 150)
    plt.close(figure)


def _positions(axis: Any, rows: Sequence[dict[str, Any]], name: str) -> None:
    labels = [f"{row['begin']:,}-\n{row['end']:,}" for row in rows]
    places = range(len(rows))
    increase = [row["loss_diff"] for row in rows]
    errors = [row["loss_diff_se"] or 0.0 for row in rows]
    axis.axhline(0, color=GREY, linewidth=1)
    axis.errorbar(places, increase, yerr=errors, color=RED, marker="o", markersize=5, capsize=2, linewidth=1.6)
    axis.set_xticks(places, labels, fontsize=7.5)
    axis.set_xlabel("position in the text")
    axis.set_ylabel("loss above fp16 (nats per token)")
    axis.set_title(f"loss by position, {name}", fontsize=10)


def _retrieval(axis: Any, rows: Sequence[dict[str, Any]], title: str, name: str) -> None:
    places = range(len(rows))
    for side, key, colour, label in ((-0.19, "fp16", GREY, "fp16"), (0.19, "policy", RED, name)):
        shares = [100 * row["greedy"][key] / row["prompts"] for row in rows]
        axis.bar([place + side for place in places], shares, width=0.36, color=colour, label=label)
    axis.set_xticks(places, [f"{row['length']:,}" for row in rows])
    axis.set_xlabel(f"prompt length (tokens), {rows[0]['prompts']} prompts each")
    axis.set_ylabel("answers found (%)")
    axis.set_ylim(0, 112)
    axis.set_title(title, fontsize=10)
    axis.legend(frameon=False, loc="upper right", ncols=2, fontsize=8)
