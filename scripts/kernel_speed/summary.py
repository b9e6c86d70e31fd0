"""Cells of kernel_benchmark, summed up: nanoseconds and cycles a unit, bandwidth, and what the goals say."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import Any

CYCLES_GOAL = 25.0  # of K scores and V sums together, a (slot, kv head) pair, three query heads
COPY_GOAL = 0.5  # of the bandwidth of a copy, 8- and 16-bit rows
V_WIDTH_OF_BANDS = 3  # V rows have no bands: what stands beside banded K rows


@dataclass(frozen=True)
class Roofline:
    """Of one number of threads. Bandwidths in GB/s; a copy's counts what it reads and what it writes."""

    threads: int
    clock_ghz: float
    read: float
    copy: float


@dataclass(frozen=True)
class Timing:
    """One kernel on rows of one kind. A unit is a (slot, kv head) pair, of the weights a whole pass."""

    kind: str  # score, sum, softmax, int4, table
    isa: str
    place: str  # memory: read from there; cache: one head's rows again and again
    bits: str
    slots: int
    threads: int
    ns_min: float
    ns_median: float
    cycles: float  # of the core's clock, by the minimum
    bytes: float  # a unit
    gb_s: float


def bits_name(bits: int) -> str:
    """A width, or the widths of the bands, first band first."""
    if bits <= 16:
        return str(bits)
    return "/".join(str(bits >> (8 * band) & 255) for band in range(4))


def rooflines(cells: list[dict[str, Any]]) -> dict[int, Roofline]:
    """By number of threads. Raises KeyError for cells of another program."""
    best: dict[int, dict[str, float]] = {}
    for cell in cells:
        at = best.setdefault(cell["threads"], {})
        if cell["kind"] == "clock":
            at["clock"] = cell["units"] / min(cell["ns"])
        elif cell["kind"] in ("read", "copy"):
            at[cell["kind"]] = cell["bytes"] / min(cell["ns"]) * (2 if cell["kind"] == "copy" else 1)
    return {threads: Roofline(threads, at["clock"], at["read"], at["copy"]) for threads, at in best.items()}


def timings(cells: list[dict[str, Any]]) -> list[Timing]:
    """All kernels' cells."""
    lines = rooflines(cells)
    rows = []
    for cell in cells:
        if cell["kind"] in ("clock", "read", "copy"):
            continue
        units = 1 if cell["kind"] in ("int4", "table") else cell["units"]
        fastest = min(cell["ns"])
        rows.append(
            Timing(
                **{name: cell[name] for name in ("kind", "isa", "place", "slots", "threads")},
                bits=bits_name(cell["bits"]),
                ns_min=fastest / units,
                ns_median=statistics.median(cell["ns"]) / units,
                cycles=fastest / units * lines[cell["threads"]].clock_ghz,
                bytes=cell["bytes"] / units,
                gb_s=cell["bytes"] / fastest,
            )
        )
    return rows


@dataclass(frozen=True)
class RowVerdict:
    """K scores and V sums of one width, set, context and number of threads, beside the goals."""

    isa: str
    bits: str
    slots: int
    threads: int
    score: Timing
    sum: Timing
    score_in_cache: Timing
    sum_in_cache: Timing
    copy_gb_s: float

    @property
    def cycles(self) -> float:
        return self.score.cycles + self.sum.cycles

    @property
    def gb_s(self) -> float:
        """Packed bytes of K and V rows by the time of both kernels."""
        return (self.score.bytes + self.sum.bytes) / (self.score.ns_min + self.sum.ns_min)

    @property
    def of_copy(self) -> float:
        return self.gb_s / self.copy_gb_s

    @property
    def wide(self) -> bool:
        return self.bits in ("8", "16")

    @property
    def reached(self) -> bool | None:
        """Whether the goal is reached; None where there is none: more threads than one share their time."""
        if self.wide:
            return self.of_copy >= COPY_GOAL
        return self.cycles <= CYCLES_GOAL if self.threads == 1 else None

    def to_json(self) -> dict[str, Any]:
        numbers = {"cycles": self.cycles, "gb_s": self.gb_s, "of_copy": self.of_copy, "reached": self.reached}
        return {name: asdict(self)[name] for name in ("isa", "bits", "slots", "threads")} | numbers


def row_verdicts(cells: list[dict[str, Any]]) -> list[RowVerdict]:
    """In the order in which the cells came."""
    lines, found = rooflines(cells), timings(cells)
    by_key = {(t.kind, t.isa, t.place, t.bits, t.slots, t.threads): t for t in found}
    verdicts = []
    for score in found:
        if score.kind != "score" or score.place != "memory":
            continue
        v_bits = str(V_WIDTH_OF_BANDS) if "/" in score.bits else score.bits
        key = (score.isa, "memory", v_bits, score.slots, score.threads)
        if ("sum", *key) not in by_key:  # banded K rows measured without V rows of that width
            continue
        verdicts.append(
            RowVerdict(
                score.isa,
                score.bits,
                score.slots,
                score.threads,
                score,
                by_key["sum", *key],
                by_key["score", score.isa, "cache", score.bits, score.slots, score.threads],
                by_key["sum", score.isa, "cache", v_bits, score.slots, score.threads],
                lines[score.threads].copy,
            )
        )
    return verdicts
