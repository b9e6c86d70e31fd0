"""Tables on the terminal and the plot of scripts/bench_kernels.py."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table
from rich.text import Text

from adakv_model.whole_file import write_picture
from kernel_speed.summary import COPY_GOAL, CYCLES_GOAL, Roofline, RowVerdict, Timing
from pages import markdown_table

WORDS = {True: Text("yes", "green"), False: Text("no", "red"), None: Text()}


def roofline_table(lines: dict[int, Roofline]) -> Table:
    shown = Table(title="Memory of this machine, GB/s; a copy counts what it reads and writes", title_justify="left")
    for name in ("threads", "clock GHz", "read", "copy"):
        shown.add_column(name, justify="right")
    for line in lines.values():
        shown.add_row(str(line.threads), f"{line.clock_ghz:.2f}", f"{line.read:.1f}", f"{line.copy:.1f}")
    return shown


def row_table(verdicts: list[RowVerdict]) -> Table:
    """Minima: from memory, and, after a dash, from a core's cache."""
    title = (
        "Packed rows, three query heads: a (slot, kv head) pair from memory, after the bar the cycles from cache.\n"
        f"Goals: K + V in {CYCLES_GOAL:.0f} cycles up to 4 bits, {COPY_GOAL:.0%} of a copy's bandwidth at 8 and 16"
    )
    shown = Table(title=title, title_justify="left")
    for name in ("set", "slots", "threads", "bits"):
        shown.add_column(name, justify="left" if name == "set" else "right", no_wrap=True)
    for name in ("K ns", "V ns", "K cycles", "V cycles", "K + V", "K GB/s", "V GB/s", "of copy", "goal"):
        shown.add_column(name, justify="right", no_wrap=True)
    last = None
    for v in verdicts:
        group = (v.isa, v.slots, v.threads)
        if last not in (None, group):
            shown.add_section()
        last = group
        shown.add_row(
            v.isa,
            str(v.slots),
            str(v.threads),
            v.bits,
            *(f"{t.ns_min:.2f}" for t in (v.score, v.sum)),
            f"{v.score.cycles:.1f} | {v.score_in_cache.cycles:.1f}",
            f"{v.sum.cycles:.1f} | {v.sum_in_cache.cycles:.1f}",
            f"{v.cycles:.1f}",
            *(f"{t.gb_s:.1f}" for t in (v.score, v.sum)),
            f"{v.of_copy:.2f}",
            WORDS[v.reached],
        )
    return shown


WEIGHT_HEADER = ("set", "weights", "threads", "ms", "median", "GB/s", "of read")


def weight_rows(found: list[Timing], lines: dict[int, Roofline]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for t in found:
        if t.kind in ("int4", "table"):
            name = "scalar" if t.isa == "baseline" else t.isa
            part = {"int4": "4-bit layers" + (" (one of 30)" if t.isa == "baseline" else ""), "table": "table"}[t.kind]
            numbers = (f"{1e-6 * t.ns_min:.2f}", f"{1e-6 * t.ns_median:.2f}", f"{t.gb_s:.1f}")
            rows.append((name, part, str(t.threads), *numbers, f"{t.gb_s / lines[t.threads].read:.2f}"))
    return rows


def weight_table(found: list[Timing], lines: dict[int, Roofline]) -> Table:
    title = "Weight products of one token, SmolLM2-135M: 120 layers of 4 bits, and the 6-bit table as output layer"
    shown = Table(title=title, title_justify="left")
    for name in WEIGHT_HEADER:
        shown.add_column(name, justify="left" if name in ("set", "weights") else "right", no_wrap=True)
    for row in weight_rows(found, lines):
        shown.add_row(*row)
    return shown


def page(verdicts: list[RowVerdict], found: list[Timing], lines: dict[int, Roofline], cpu: str) -> str:
    """Markdown: rows at the context nearest to 4,096 with the fewest threads, and the weight products."""
    slots, threads = min((abs(v.slots - 4096), v.slots) for v in verdicts)[1], min(lines)
    memory = ", ".join(
        f"{line.read:.1f} GB/s read and {line.copy:.1f} copied (read and written) with {line.threads}"
        f" thread{'s' if line.threads > 1 else ''}"
        for line in lines.values()
    )
    header = ("set", "bits", "K cycles", "V cycles", "K + V", "ns", "GB/s", "of copy", "goal")
    rows = [
        (
            *(v.isa, v.bits),
            f"{v.score.cycles:.1f} ({v.score_in_cache.cycles:.1f})",
            f"{v.sum.cycles:.1f} ({v.sum_in_cache.cycles:.1f})",
            f"{v.cycles:.1f}",
            f"{v.score.ns_min + v.sum.ns_min:.2f}",
            *(f"{v.gb_s:.1f}", f"{v.of_copy:.2f}"),
            {True: "yes", False: "no", None: ""}[v.reached],
        )
        for v in verdicts
        if v.slots == slots and v.threads == threads
    ]
    softmax = [f"{t.isa} {t.cycles:.1f}" for t in found if (t.kind, t.slots, t.threads) == ("softmax", slots, threads)]
    parts = [
        f"{cpu}; {lines[threads].clock_ghz:.2f} GHz; {memory}.",
        f"{slots} slots, {threads} thread{'s' if threads > 1 else ''}; in brackets: rows that stay in a core's cache.",
        markdown_table(header, rows, 2),
        f"Softmax between the two, cycles: {', '.join(softmax)}.",
    ]
    if weights := weight_rows(found, lines):
        parts.append(markdown_table(WEIGHT_HEADER, weights, 2))
    return "\n\n".join(parts)


def plot(verdicts: list[RowVerdict], lines: dict[int, Roofline], path: Path, title: str) -> None:
    """One column a vector set, one thread: cycles against context, and bandwidth with the rooflines."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    threads = min(lines)
    chosen = [v for v in verdicts if v.threads == threads]
    isas = list(dict.fromkeys(v.isa for v in chosen if v.isa != "scalar")) or ["scalar"]
    figure, axes = plt.subplots(2, len(isas), figsize=(1 + 5 * len(isas), 8), squeeze=False, sharex=True, sharey="row")
    for column, isa in enumerate(isas):
        top, bottom = axes[0][column], axes[1][column]
        for bits in dict.fromkeys(v.bits for v in chosen):
            curve = [v for v in chosen if (v.isa, v.bits) == (isa, bits)]
            slots = [v.slots for v in curve]
            top.plot(slots, [v.cycles for v in curve], marker="o", markersize=3, label=f"{bits} bits")
            bottom.plot(slots, [v.gb_s for v in curve], marker="o", markersize=3)
        top.axhline(CYCLES_GOAL, color="gray", linestyle=":", label="goal up to 4 bits")
        bottom.axhline(lines[threads].read, color="black", linestyle="--", label="read")
        bottom.axhline(lines[threads].copy, color="gray", linestyle="--", label="copy")
        bottom.axhline(COPY_GOAL * lines[threads].copy, color="gray", linestyle=":", label="goal at 8 and 16 bits")
        top.set(title=isa, ylim=(0, None))
        bottom.set(xlabel="slots", xscale="log", ylim=(0, None))
        ticks = sorted({v.slots for v in chosen})
        bottom.set_xticks(ticks, [str(n) for n in ticks])
        bottom.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
        for axis in (top, bottom):
            axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("cycles a (slot, kv head), K + V")
    axes[1][0].set_ylabel("GB/s of packed bytes")
    axes[0][-1].legend(fontsize="x-small")
    axes[1][-1].legend(fontsize="x-small")
    figure.suptitle(title)
    figure.tight_layout()
    write_picture(path, figure, 130)
    plt.close(figure)
