"""From samples to one line for every device, artifact, test and number of threads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from device_tests.bench.plan import Test
from device_tests.bench.rows import FAILURE, PROBE, SAMPLE, Row
from device_tests.bench.runner import milliseconds_per_token
from device_tests.bench.statistics import mean_interval


@dataclass(frozen=True)
class Group:
    """Samples that differ in their repetition only, by repetition. ms: one a sample, milliseconds a token."""

    samples: Sequence[Row]

    @property
    def first(self) -> Row:
        return self.samples[0]

    @property
    def device(self) -> Row:
        return dict(self.first["device"])

    @property
    def artifact(self) -> Row:
        return dict(self.first["artifact"])

    @property
    def test(self) -> Test:
        return Test(**self.first["test"])

    @property
    def threads(self) -> int:
        return int(self.first["threads"])

    @property
    def ms(self) -> list[float]:
        return [milliseconds_per_token(sample["result"]) for sample in self.samples]

    @property
    def by_rep(self) -> dict[int, float]:
        return {sample["rep"]: ms for sample, ms in zip(self.samples, self.ms, strict=True)}

    @property
    def interval(self) -> tuple[float, float, float]:
        """Geometric mean of `ms` with its 95 % interval."""
        return mean_interval(self.ms)

    @property
    def steps(self) -> np.ndarray:
        """float [n]: milliseconds of every decode step, or of every prefill chunk."""
        ns = [one for s in self.samples for one in s["result"]["decode_ns"] or s["result"]["prefill_ns"]]
        return np.array(ns) / 1e6

    @property
    def peak(self) -> int:
        """Largest resident memory of all samples, bytes."""
        return max(int(sample["result"]["memory"]["peak"]) for sample in self.samples)

    @property
    def throttled(self) -> int:
        return sum(bool(sample["throttled"]) for sample in self.samples)

    @property
    def tiers(self) -> dict[str, int]:
        """Tokens by bits at the end of the last sample."""
        counts = self.samples[-1]["result"]["cache"]["tokens_by_tier"]
        return {f"{bits:g}": n for bits, n in zip(self.artifact["tier_bits"], counts, strict=False)}


def group_key(sample: Row) -> tuple[Any, ...]:
    test = sample["test"]
    return (
        sample["device"]["selector"],
        (test["pp"] == 0, test["depth"], test["pp"], test["tg"]),
        sample["threads"],
        sample["cpu_mask"] or "",
        sample["artifact"]["id"],
    )


def groups(rows: Iterable[Row]) -> list[Group]:
    """Of what passes its parity probe, in a fixed order: by device, test, threads and, as they appear, artifact."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    first: dict[str, int] = {}
    rows = list(rows)
    wrong = failing_parity(rows)
    for sample in (row for row in rows if row["kind"] == SAMPLE):
        if (sample["device"]["selector"], sample["artifact"]["id"]) in wrong:
            continue
        found.setdefault(group_key(sample), []).append(sample)
        first.setdefault(sample["artifact"]["id"], len(first))
    keys = sorted(found, key=lambda key: (*key[:-1], first[key[-1]]))
    return [Group(sorted(found[key], key=lambda sample: int(sample["rep"]))) for key in keys]


def failing_parity(rows: Iterable[Row]) -> set[tuple[str, str]]:
    """(selector, artifact id) of those whose last probe failed."""
    last = {(row["device"], row["artifact"]["id"]): row["passed"] for row in rows if row["kind"] == PROBE}
    return {key for key, passed in last.items() if not passed}


def failures(rows: Iterable[Row]) -> list[str]:
    """A line for every probe and every run that failed and did not succeed later."""
    rows = list(rows)
    lines: dict[tuple[str, str, str], str] = {}
    for row in rows:
        if row["kind"] == PROBE:
            key = (row["device"], row["artifact"]["id"], "probe")
            lines.pop(key, None)
            if not row["passed"]:
                lines[key] = (
                    f"{row['artifact']['name']} on {row['device']} fails parity: {_reason(row)}; no speed is shown"
                )
        elif row["kind"] == FAILURE:
            what = "probe" if row["test"] is None else f"{Test(**row['test']).name} rep {row['rep']}"
            name = row["artifact"]["name"]
            lines[row["device"], row["artifact"]["id"], what] = f"{name}, {what} on {row['device']}: {row['error']}"
        elif row["kind"] == SAMPLE:
            what = f"{Test(**row['test']).name} rep {row['rep']}"
            lines.pop((row["device"]["selector"], row["artifact"]["id"], what), None)
    return list(lines.values())


def _reason(probe: Row) -> str:
    found, bounds = probe["agreement"], probe["bounds"]
    kl, top1 = found["mean_kl"], found["top1"]
    return (
        f"KL {'not finite' if kl is None else format(kl, '.3g')} (at most {bounds['max_kl']:g}),"
        f" top-1 {0 if top1 is None else top1:.2f} (at least {bounds['min_top1']:g})"
    )


def is_phone(device: Row) -> bool:
    """A result that may be shown as a phone's."""
    return not device["emulated"]
