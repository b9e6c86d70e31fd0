"""The results on a terminal. Phones first, apart from everything that is none."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from rich.table import Table

from device_tests.bench.summary import Group, is_phone

WIDTH = 140  # of a table that goes to a file
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


def tables(found: Sequence[Group]) -> list[Table]:
    """One table a device; milliseconds a token are geometric means of the repetitions, with 95 % intervals."""
    ordered = sorted(found, key=lambda group: (not is_phone(group.device), group.device["selector"]))
    return [_table(list(part)) for _, part in groupby(ordered, key=lambda group: group.device["selector"])]


def _table(found: Sequence[Group]) -> Table:
    shown = Table(title=device_title(found[0]), title_justify="left")
    shown.add_column("test", no_wrap=True)
    shown.add_column("artifact", overflow="fold")
    for name in ("threads", "ms a token", "95 %", "tokens/s", "step p90", "peak MB", "cache MiB"):
        shown.add_column(name, justify="right", no_wrap=True)
    shown.add_column("tokens by bits")
    shown.add_column("")
    last = None
    for group in found:
        if last not in (None, group.test):
            shown.add_section()
        last = group.test
        shown.add_row(*_cells(group))
    return shown


def _cells(group: Group) -> list[str]:
    mean, low, high = group.interval
    step = f"{sorted(group.steps)[int(0.9 * (len(group.steps) - 1))]:.2f}" if group.test.tg else ""
    notes = [f"clock dropped in {group.throttled} of {len(group.samples)}"] if group.throttled else []
    notes += ["slow cores too"] if group.first["slow_cores"] else []
    return [
        group.test.name,
        group.artifact["name"],
        str(group.threads),
        f"{mean:.2f}",
        f"{low:.2f} - {high:.2f}" if low == low else "",
        f"{1000 / mean:.1f}",
        step,
        f"{group.peak / 1e6:.0f}",
        f"{group.artifact['cache_bytes'] / 2**20:.2f}",
        ", ".join(f"{n} at {bits}" for bits, n in group.tiers.items() if n),
        ", ".join(notes),
    ]
