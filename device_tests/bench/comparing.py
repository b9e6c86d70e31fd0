"""When two groups of samples may be compared, and what comes out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from device_tests.bench.rows import Row
from device_tests.bench.statistics import Ratio, paired_ratio, unpaired_ratio
from device_tests.bench.summary import Group

#: Of a device: what must be equal for two results to be of the same one.
DEVICE = ("kind", "emulated", "model", "soc", "abi", "os_build", "governors")
MIN_PAIRS = 3


@dataclass(frozen=True)
class Comparison:
    """a against b. ratio None: not comparable, for these reasons. notes: what a reader should know all the same."""

    a: Group
    b: Group
    ratio: Ratio | None
    reasons: Sequence[str] = ()
    notes: Sequence[str] = ()

    @property
    def verdict(self) -> str:
        return "not comparable" if self.ratio is None else self.ratio.verdict

    def to_json(self) -> dict[str, Any]:
        return {
            "device": self.a.device["selector"],
            "emulated": self.a.device["emulated"],
            "test": self.a.test.name,
            "threads": self.a.threads,
            "a": self.a.artifact["name"],
            "b": self.b.artifact["name"],
            "a_ms": self.a.interval[0],
            "b_ms": self.b.interval[0],
            "ratio": None if self.ratio is None else {n: _finite(v) for n, v in asdict(self.ratio).items()},
            "verdict": self.verdict,
            "reasons": list(self.reasons),
            "notes": list(self.notes),
        }


def compare(a: Group, b: Group, across_runs: bool = False) -> Comparison:
    """Of the same test. across_runs: allow samples that were not taken in turn, with the wider interval of those."""
    reasons = list(differences(a, b))
    interleaved = a.first["run"] == b.first["run"]
    if not interleaved and not across_runs:
        reasons.append("different runs: their samples were not taken in turn (--across-runs compares them loosely)")
    shared = sorted(a.by_rep.keys() & b.by_rep.keys())
    if interleaved and len(shared) < MIN_PAIRS:
        reasons.append(
            f"{len(shared)} repetitions in common, of at least {MIN_PAIRS}: run again with --reps {MIN_PAIRS} or more"
            " (--resume keeps these)"
        )
    if reasons:
        return Comparison(a, b, None, reasons)
    notes = []
    if a.throttled or b.throttled:
        notes.append(f"clocks dropped during {a.throttled} and {b.throttled} samples")
    if not interleaved:
        notes.append("different runs, not taken in turn")
        return Comparison(a, b, unpaired_ratio(a.ms, b.ms), (), notes)
    return Comparison(a, b, paired_ratio([a.by_rep[r] for r in shared], [b.by_rep[r] for r in shared]), (), notes)


def differences(a: Group, b: Group) -> Iterator[str]:
    """Reasons against a comparison, in words."""
    one, other = a.device, b.device
    if one["emulated"] != other["emulated"]:
        yield "one is a phone's and the other is not"
    for name in DEVICE:
        if one[name] != other[name] and name != "emulated":
            yield f"{name.replace('_', ' ')} differs ({_short(one[name])}, {_short(other[name])})"
    for name in ("threads", "cpu_mask", "test"):
        if a.first[name] != b.first[name]:
            yield f"{name.replace('_', ' ')} differs ({_short(a.first[name])}, {_short(b.first[name])})"
    isa = [_isa(group.samples) for group in (a, b)]
    if isa[0] != isa[1]:
        yield f"instruction set differs ({isa[0]}, {isa[1]})"
    for group in (a, b):
        hot = sum(not sample["cooldown"]["reached"] for sample in group.samples)
        if hot:
            yield f"{group.artifact['name']} was still hot in {hot} of {len(group.samples)} samples"


def pairs(first: Iterable[Group], second: Iterable[Group]) -> Iterator[tuple[Group, Group]]:
    """Groups of the same test and device kind, one of each side, which are not the same measurement."""
    others = list(second)
    seen: set[frozenset[int]] = set()
    for a in first:
        for b in others:
            same_place = (a.device["selector"], a.test, a.threads) == (b.device["selector"], b.test, b.threads)
            same = a.first["run"] == b.first["run"] and a.artifact["id"] == b.artifact["id"]
            both = frozenset((id(a), id(b)))
            if same_place and not same and both not in seen:
                seen.add(both)
                yield a, b


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _isa(samples: Sequence[Row]) -> str:
    return ", ".join(sorted({str(sample["result"]["runner"].get("isa")) for sample in samples}))


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{name}{number}" for name, number in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
