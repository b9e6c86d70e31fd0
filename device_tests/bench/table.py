"""The results on a terminal. Phones first, apart from everything that is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from rich.box import SIMPLE_HEAD
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from device_tests.bench.summary import Group, is_phone

WIDEST = 1000  # columns; no table is as wide
NO_PHONE = {
    "host": "this machine, not a phone",
    "qemu": "emulated arm64: correctness, not speed",
    "simulator": "simulator, not a phone",
    "adb": "emulated device, not a phone",
    "mac": "a Mac, not a phone",
}


def device_title(group: Group) -> str:
    device = group.device
    if is_phone(device):
        return f"{device['model']} ({device['selector']}, {device['soc'] or 'SoC unknown'}, {device['os_build']})"
    return f"{device['selector']}: {device['model']} [{NO_PHONE.get(device['kind'], 'not a phone')}]"


def show(found: Sequence[Group], console: Console) -> None:
    """A title and a table a device; milliseconds a token are geometric means of the repetitions, with 95 % intervals.

    Where one table is wider than the console, memory and tiers get a second one.
    """
    ordered = sorted(found, key=lambda group: (not is_phone(group.device), group.device["selector"]))
    for _, groups in groupby(ordered, key=lambda group: group.device["selector"]):
        part = list(groups)
        threads = {group.threads for group in part}
        shared = f", {threads.pop()} threads" if len(threads) == 1 else ""
        console.print(device_title(part[0]) + shared, soft_wrap=True)
        what, speed, memory = _what(part), _speed(part), _memory(part)
        whole = table_of(what + speed + memory)
        fits = console.measure(whole, options=console.options.update(width=WIDEST)).maximum <= console.width
        for shown in [whole] if fits else [table_of(what + speed), table_of(what + memory)]:
            console.print(shown)
            console.print()


@dataclass(frozen=True)
class Column:
    """Of a table. fold: where it is too narrow for the console, its texts take several lines."""

    name: str
    cells: Sequence[str | Text]
    right: bool = False
    fold: bool = False


def table_of(columns: Sequence[Column]) -> Table:
    """A table without the columns that hold nothing."""
    filled = [column for column in columns if any(map(len, column.cells))]
    shown = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for column in filled:
        justify: JustifyMethod = "right" if column.right else "left"
        shown.add_column(column.name, justify=justify, overflow="fold", no_wrap=not column.fold)
    for cells in zip(*(column.cells for column in filled), strict=True):
        shown.add_row(*cells)
    return shown


def _what(found: Sequence[Group]) -> list[Column]:
    return [
        Column("test", [group.test.name for group in found]),
        Column("artifact", [group.artifact["name"] for group in found], fold=True),
    ]


def _speed(found: Sequence[Group]) -> list[Column]:
    several = len({group.threads for group in found}) > 1
    means = [group.interval for group in found]
    return [
        Column("threads", [str(group.threads) if several else "" for group in found], right=True),
        Column("ms a token", [f"{mean:.2f}" for mean, _, _ in means], right=True),
        Column("95 %", [f"{low:.2f} - {high:.2f}" if low == low else "" for _, low, high in means], right=True),
        Column("tokens/s", [f"{1000 / mean:.1f}" for mean, _, _ in means], right=True),
        Column("step p90", [_step(group) for group in found], right=True),
    ]


def _memory(found: Sequence[Group]) -> list[Column]:
    return [
        Column("peak MB", [f"{group.peak / 1e6:.0f}" for group in found], right=True),
        Column("cache MiB", [f"{group.artifact['cache_bytes'] / 2**20:.2f}" for group in found], right=True),
        Column(
            "tokens by bits",
            [", ".join(f"{n} at {bits}" for bits, n in group.tiers.items() if n) for group in found],
            fold=True,
        ),
        Column("notes", [_notes(group) for group in found], fold=True),
    ]


def _step(group: Group) -> str:
    return f"{sorted(group.steps)[int(0.9 * (len(group.steps) - 1))]:.2f}" if group.test.tg else ""


def _notes(group: Group) -> str:
    notes = [f"clock dropped in {group.throttled} of {len(group.samples)}"] if group.throttled else []
    notes += ["slow cores too"] if group.first["slow_cores"] else []
    return ", ".join(notes)
