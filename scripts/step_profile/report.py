"""A step's profile as tables on the terminal and as a section of a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table

from pages import markdown_table
from step_profile.events import ATTENTION, GROUPS, WEIGHTS, Operator
from step_profile.functions import Function

LEAST_SHARE = 0.01  # functions below it are summed up


@dataclass(frozen=True)
class Profile:
    """Decode steps at one context with one number of threads. Times in milliseconds, bandwidth in GB/s."""

    context: int
    threads: int
    isa: str
    step_min: float  # without tracing
    step_median: float
    traced: float  # of the runtime's own clock, median, with tracing
    groups: dict[str, float]
    operators: list[Operator]
    functions: list[Function]  # empty without perf
    weight_bytes: int
    cache_bytes: int
    read_gb_s: float
    parts: dict[str, float] = field(default_factory=dict)  # shares of the samples, by what a function does

    def limit(self, group: str | None = None) -> float:
        """Milliseconds that reading the bytes takes: of a group, or of the whole step."""
        by_group = {WEIGHTS: self.weight_bytes, ATTENTION: self.cache_bytes}
        chosen = sum(by_group.values()) if group is None else by_group.get(group, 0)
        return 1e3 * chosen / (self.read_gb_s * 1e9)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"limit_ms": self.limit(), "of_limit": self.limit() / self.step_min}


Row = tuple[str, ...]
HEADER = ("part of a step", "ms", "share", "MB read", "limit ms", "of limit")


def group_rows(p: Profile) -> list[Row]:
    """Lines of the first table: groups, then the whole traced and untraced step."""
    megabytes = {WEIGHTS: p.weight_bytes / 1e6, ATTENTION: p.cache_bytes / 1e6}
    rows: list[Row] = []
    for group in GROUPS:
        ms, limit = p.groups[group], p.limit(group)
        bytes_read = f"{megabytes[group]:.1f}" if group in megabytes else ""
        reached = (f"{limit:.2f}", f"{limit / ms:.0%}") if limit and ms else ("", "")
        rows.append((group, f"{ms:.3f}", f"{ms / p.traced:.0%}", bytes_read, *reached))
    both = f"{(p.weight_bytes + p.cache_bytes) / 1e6:.1f}"
    rows.append(("step, traced", f"{p.traced:.3f}", "100%", both, f"{p.limit():.2f}", f"{p.limit() / p.traced:.0%}"))
    fastest = f"{p.limit() / p.step_min:.0%}"
    rows.append(("step, untraced: fastest", f"{p.step_min:.3f}", "", both, f"{p.limit():.2f}", fastest))
    rows.append(("step, untraced: median", f"{p.step_median:.3f}", "", "", "", ""))
    return rows


def operator_rows(p: Profile) -> list[Row]:
    return [(o.name, o.group, str(o.calls), f"{o.ms:.3f}", f"{o.ms / p.traced:.1%}") for o in p.operators]


def part_rows(p: Profile) -> list[Row]:
    """What the samples say, with the functions behind it."""
    rows: list[Row] = []
    for part, share in p.parts.items():
        names = [f"{f.name} {f.share:.1%}" for f in p.functions if f.part == part and f.share >= LEAST_SHARE]
        rows.append((part, f"{share:.1%}", ", ".join(names[:5])))
    return rows


def title(p: Profile) -> str:
    threads = f"{p.threads} thread{'s' if p.threads > 1 else ''}"
    return f"{p.context} tokens in the cache, {threads}, {p.isa}; memory reads {p.read_gb_s:.1f} GB/s"


def tables(p: Profile) -> list[Table]:
    """For the terminal."""
    shown = [_table(title(p), HEADER, group_rows(p), 1)]
    shown.append(_table("operators", ("operator", "part", "calls", "ms", "share"), operator_rows(p), 2))
    if p.functions:
        header = ("functions, by samples", "share", "most of it")
        shown.append(_table("processor time of all threads", header, part_rows(p), 1))
    return shown


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int) -> Table:
    table = Table(title=title, title_justify="left")
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i < text_columns or name == "most of it" else "right")
    for row in rows:
        table.add_row(*row)
    return table


def page(profiles: list[Profile], cpu: str, artifact: str) -> str:
    """Markdown of all profiles."""
    parts = [f"{artifact}, on {cpu}."]
    for p in profiles:
        parts.append(f"**{title(p)}**\n\n" + markdown_table(HEADER, group_rows(p)))
        if p.functions:
            header = ("processor time of all threads, by samples", "share")
            parts.append(markdown_table(header, [row[:2] for row in part_rows(p)]))
    return "\n\n".join(parts)
