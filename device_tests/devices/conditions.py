"""The state of a device at one moment, as far as it tells; what it does not tell is None or empty."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Core:
    """One CPU core. max_khz: cpufreq/cpuinfo_max_freq; khz: scaling_cur_freq."""

    index: int
    max_khz: int | None = None
    khz: int | None = None
    governor: str | None = None


@dataclass(frozen=True)
class Battery:
    """level: per cent; celsius: its temperature; charging: whether it is on power."""

    level: int | None = None
    celsius: float | None = None
    charging: bool | None = None


@dataclass(frozen=True)
class Conditions:
    """thermal: degrees Celsius by zone; thermal_status: Android's 0 (none) to 6 (shutdown);
    memory_total, memory_available: bytes; load: runnable threads, 1-minute mean."""

    model: str
    soc: str | None = None
    abi: str | None = None
    os_build: str | None = None
    cpu_features: tuple[str, ...] = ()
    cores: tuple[Core, ...] = ()
    thermal: dict[str, float] = field(default_factory=dict)
    thermal_status: int | None = None
    battery: Battery | None = None
    memory_total: int | None = None
    memory_available: int | None = None
    load: float | None = None

    @property
    def celsius(self) -> float | None:
        """What a cool-down watches: the battery's temperature, which follows the case, else the hottest zone."""
        if self.battery is not None and self.battery.celsius is not None:
            return self.battery.celsius
        return max(self.thermal.values(), default=None)
