"""How codes are packed into the elements of a Core ML cache: fp16 states, or int8 inputs that the host keeps.

An fp16 number holds every integer in [-2048, 2047] exactly, so one element carries 12 bits: six 2-bit, four 3-bit or
three 4-bit digits. An int8 element carries 8: four 2-bit or two 4-bit digits, or a whole 8-bit code. Where a code
does not fit evenly it is split into digits, the most significant first: 8 bits into 4 + 4 (fp16), 3 bits into a plane
of two high bits and a plane of one low bit (int8).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

ALIGNMENT = 32  # elements; the Neural Engine has been reported to refuse other states (coremltools issue 2631)
SCALE_BYTES = 2  # scales and raw rows are fp16 in every storage


@dataclass(frozen=True)
class Digits:
    """One run of packed digits: `count` digits of `width` bits from every code, all most significant ones first."""

    width: int
    count: int


@dataclass(frozen=True)
class Storage:
    """What one element holds. `runs`: code width to its runs of digits, the most significant run first."""

    name: str
    dtype: str
    payload_bits: int
    element_bytes: int
    channel_alignment: int
    runs: Mapping[int, tuple[Digits, ...]]

    def run_elements(self, codes: int, run: Digits) -> int:
        """Elements of one run over `codes` codes."""
        return -(-codes * run.count // (self.payload_bits // run.width))

    def elements(self, codes: int, bits: int) -> int:
        """Elements that hold `codes` codes of `bits` bits."""
        return sum(self.run_elements(codes, run) for run in self.runs[bits])


FP16 = Storage(
    name="states",
    dtype="float16",
    payload_bits=12,
    element_bytes=2,
    channel_alignment=ALIGNMENT,
    runs={b: (Digits(b, 1),) for b in (1, 2, 3, 4)} | {8: (Digits(4, 2),)},
)
# Nothing is reported about the widths of inputs: only slots, the innermost axis, are kept a multiple of 32.
INT8 = Storage(
    name="int8",
    dtype="int8",
    payload_bits=8,
    element_bytes=1,
    channel_alignment=1,
    runs={b: (Digits(b, 1),) for b in (1, 2, 4, 8)} | {3: (Digits(2, 1), Digits(1, 1))},
)
STORAGES = {storage.name: storage for storage in (FP16, INT8)}
