"""Four pictures of a run: latency against depth, milliseconds a step, memory, tiers used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adakv_model.errors import UserError
from adakv_model.whole_file import write_picture
from device_tests.bench.summary import Group, groups
from device_tests.bench.table import device_title


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Four pictures for every device, never two devices in one picture. Raises UserError without samples."""
    found = groups(rows)
    if not found:
        raise UserError("there is nothing to plot: no sample is finished, or none passes parity")
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    devices = list(dict.fromkeys(group.device["selector"] for group in found))
    figure, axes = plt.subplots(
        2 * len(devices), 2, figsize=(11, 8.2 * len(devices)), squeeze=False, layout="constrained"
    )
    for line, selector in zip(axes.reshape(len(devices), 4), devices, strict=True):
        own = [group for group in found if group.device["selector"] == selector]
        decode = [group for group in own if group.test.tg]
        _against_depth(line[0], decode or own)
        _steps(line[1], _deepest(decode or own))
        _memory(line[2], _deepest(own))
        _tiers(line[3], _deepest(own))
        line[0].set_title(device_title(own[0]), fontsize="medium", loc="left")
    write_picture(path, figure, 110)
    plt.close(figure)


def _label(group: Group) -> str:
    return f"{group.artifact['name']}, {group.threads} thread{'s' if group.threads > 1 else ''}"


def _deepest(found: Sequence[Group]) -> list[Group]:
    """The last test of each artifact and number of threads."""
    return list({_label(group): group for group in sorted(found, key=lambda group: group.test.tokens)}.values())


def _against_depth(axis: Any, found: Sequence[Group]) -> None:
    lines: dict[tuple[str, str], list[Group]] = {}
    for group in found:
        kind = group.test.name.split(" @")[0]
        lines.setdefault((kind, _label(group)), []).append(group)
    for (kind, label), line in lines.items():
        line.sort(key=lambda group: group.test.depth)
        mean, low, high = np.array([group.interval for group in line]).T
        error = np.nan_to_num(np.stack((mean - low, high - mean)))
        axis.errorbar([g.test.depth for g in line], mean, error, marker="o", capsize=3, label=f"{kind} {label}")
    axis.set(xlabel="tokens in the cache before", ylabel="ms a token", ylim=(0, None))
    axis.legend(fontsize="small")
    axis.grid(alpha=0.3)


def _steps(axis: Any, found: Sequence[Group]) -> None:
    for number, group in enumerate(found):
        for sample in group.samples:
            result = sample["result"]
            ms = np.array(result["decode_ns"] or result["prefill_ns"]) / 1e6
            first = sample is group.first
            axis.plot(ms, color=f"C{number}", alpha=0.6, linewidth=0.8, label=_label(group) if first else None)
    if found:
        axis.set(title=found[0].test.name, xlabel="step", ylabel="ms a step", ylim=(0, None))
        axis.legend(fontsize="small")
    axis.grid(alpha=0.3)


def _memory(axis: Any, found: Sequence[Group]) -> None:
    """Mapped file pages are the weights and the libraries; the rest splits into the cache and all other."""
    for number, group in enumerate(found):
        end = group.samples[-1]["result"]["memory"]["end"]
        cache, file = group.artifact["cache_bytes"], end["file"] or 0
        other = max(0, group.peak - file - cache)
        bottom = 0.0
        for part, size in (("file pages", file), ("cache", cache), ("other", other)):
            colour = {"file pages": "C7", "cache": "C0", "other": "C1"}[part]
            axis.bar(number, size / 1e6, bottom=bottom, color=colour, label=part if not number else None)
            bottom += size / 1e6
        axis.text(number, bottom, f"{group.peak / 1e6:.0f}", ha="center", va="bottom")
    axis.set_xticks(range(len(found)), [_label(group) for group in found], fontsize="x-small")
    title = f"peak resident memory, {found[0].test.tokens} tokens" if found else ""
    axis.set(title=title, ylabel="MB")
    axis.legend(fontsize="small")


def _tiers(axis: Any, found: Sequence[Group]) -> None:
    for number, group in enumerate(found):
        bottom = 0
        for bits, count in group.tiers.items():
            if count:
                axis.bar(number, count, bottom=bottom)
                axis.text(number, bottom + count / 2, f"{count} at {bits}", ha="center", va="center", fontsize="small")
                bottom += count
    axis.set_xticks(range(len(found)), [_label(group) for group in found], fontsize="x-small")
    axis.set(title="tokens outside the window, by bits", ylabel="tokens")
