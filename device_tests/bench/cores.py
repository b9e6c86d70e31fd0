"""Which cores a run uses: by default the fastest ones, never a slow cluster of a big.LITTLE device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adakv_model.errors import UserError
from device_tests.devices import Conditions, Core

DEFAULT_THREADS = 4


@dataclass(frozen=True)
class Placement:
    """threads of the runtime; mask: hexadecimal, None for no restriction; slow: whether it includes slow cores."""

    threads: int
    mask: str | None
    slow: bool = False


def fast_cores(cores: Sequence[Core]) -> list[Core]:
    """All but the cluster with the lowest top frequency, fastest first; all of them where there is one cluster, or
    where frequencies are unknown."""
    if any(core.max_khz is None for core in cores):
        return list(cores)
    lowest = min((core.max_khz or 0 for core in cores), default=0)
    fast = [core for core in cores if (core.max_khz or 0) > lowest] or list(cores)
    return sorted(fast, key=lambda core: -(core.max_khz or 0))


def place(conditions: Conditions, threads: int | None, mask: str | None) -> Placement:
    """The user's choice, completed. threads None: as many as there are fast cores, at most DEFAULT_THREADS.

    Raises UserError for a mask that is no hexadecimal number or names a core that the device lacks.
    """
    cores, fast = conditions.cores, fast_cores(conditions.cores)
    if mask is not None:
        chosen = _cores_of(mask, cores)
        slow = len(fast) < len(cores) and any(core not in fast for core in chosen)
        return Placement(threads or min(len(chosen), DEFAULT_THREADS), f"{int(mask, 16):x}", slow)
    count = threads or min(len(fast) or 1, DEFAULT_THREADS)
    if not fast or len(fast) == len(cores):
        return Placement(count, None)
    ordered = fast + sorted((c for c in cores if c not in fast), key=lambda core: -(core.max_khz or 0))
    chosen = ordered[:count]
    return Placement(count, f"{sum(1 << core.index for core in chosen):x}", slow=len(chosen) > len(fast))


def _cores_of(mask: str, cores: Sequence[Core]) -> list[Core]:
    try:
        bits = int(mask, 16)
    except ValueError:
        bits = 0
    if bits <= 0:
        raise UserError(f"--cpu-mask takes a hexadecimal number, such as f0 for cores 4 to 7, not {mask!r}")
    chosen = [core for core in cores if bits >> core.index & 1]
    if cores and len(chosen) != bits.bit_count():
        raise UserError(f"--cpu-mask {mask} names cores that the device lacks: it has {len(cores)}")
    return chosen
