"""The table on the terminal and the plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from adakv_model.whole_file import write_picture

WRONG = "WRONG LOSS"
WIDTH = 170  # of a table that goes to a file


def table(rows: list[dict[str, Any]]) -> Table:
    """One line a row; a wrong loss is marked."""
    shown = Table(title="milliseconds a token; loss in nats of the same tokens", title_justify="left")
    for name in ("context", "threads", "system", "cache", "decode min", "median", "p90", "prefill", "load s", "RSS MB"):
        shown.add_column(name, justify="left" if name in ("system", "cache") else "right", no_wrap=True)
    for name in ("KV MiB", "file MB", "nll", ""):
        shown.add_column(name, justify="right")
    last = None
    for row in rows:
        group = (row["context"], row["threads"])
        if last not in (None, group):
            shown.add_section()
        last = group
        shown.add_row(
            *(str(row[c]) for c in ("context", "threads", "system", "cache")),
            *(f"{row[f'decode_ms_{c}']:.2f}" for c in ("min", "median", "p90")),
            f"{row['prefill_ms_per_token']:.2f}",
            f"{row['load_s']:.1f}",
            f"{row['peak_rss_mb']:.0f}",
            "" if row["kv_bytes"] is None else f"{row['kv_bytes'] / 2**20:.2f}",
            f"{row['file_bytes'] / 1e6:.1f}",
            "" if row["nll"] is None else f"{row['nll']:.4f}",
            Text(WRONG if row["wrong"] else "", style="red"),
            style="dim" if row["wrong"] else None,
        )
    return shown


def plot(rows: list[dict[str, Any]], path: Path, title: str) -> None:
    """Median decode time against context, one panel for every number of threads; wrong losses are dotted."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    threads = sorted({row["threads"] for row in rows})
    systems = list(dict.fromkeys(row["system"] for row in rows))
    figure, axes = plt.subplots(1, len(threads), figsize=(1 + 5.5 * len(threads), 5), squeeze=False, sharey=True)
    markers = "osv^Dx*P"
    for axis, count in zip(axes[0], threads, strict=True):
        chosen = [row for row in rows if row["threads"] == count]
        for system, cache in dict.fromkeys((row["system"], row["cache"]) for row in chosen):
            line = [row for row in chosen if (row["system"], row["cache"]) == (system, cache)]
            wrong = any(row["wrong"] for row in line)
            caches = list(dict.fromkeys(row["cache"] for row in rows if row["system"] == system))
            axis.plot(
                [row["context"] for row in line],
                [row["decode_ms_median"] for row in line],
                color=f"C{systems.index(system)}",
                marker=markers[caches.index(cache) % len(markers)],
                linestyle=":" if wrong else "-",
                markerfacecolor="none" if wrong else None,
                label=f"{system} {cache}" + (f" ({WRONG.lower()})" if wrong else ""),
            )
        axis.set(title=f"{count} thread{'s' if count > 1 else ''}", xlabel="context (tokens)", xscale="log")
        axis.set_xticks(
            sorted({row["context"] for row in rows}), [str(c) for c in sorted({r["context"] for r in rows})]
        )
        axis.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
        axis.tick_params(axis="y", which="minor", labelsize="x-small")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("decode, ms a token (median)")
    axes[0][0].set_yscale("log")  # from 5 ms to hundreds
    axes[0][0].yaxis.set_major_formatter("{x:g}")
    axes[0][0].yaxis.set_minor_formatter("{x:g}")
    axes[0][-1].legend(fontsize="x-small")
    figure.suptitle(title)
    figure.tight_layout()
    write_picture(path, figure, 130)
    plt.close(figure)
