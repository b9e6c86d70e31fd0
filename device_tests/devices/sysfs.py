"""Cores, temperatures and memory of any Linux (Android's too) from its /sys and /proc files.

Reading is apart from understanding, so that a transport may fetch the files its own way, in one command.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from device_tests.devices.conditions import Core

#: Shell patterns of every file that is understood here. Many may be missing or unreadable.
PATTERNS = (
    "/sys/devices/system/cpu/present",
    "/sys/devices/system/cpu/cpu[0-9]*/cpufreq/cpuinfo_max_freq",
    "/sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq",
    "/sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor",
    "/sys/class/thermal/thermal_zone*/type",
    "/sys/class/thermal/thermal_zone*/temp",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/loadavg",
)

MAX_CORES = 1024
Files = Mapping[str, str]  # path -> content


def read_local() -> dict[str, str]:
    """The files of this machine."""
    files = {}
    for pattern in PATTERNS:
        for path in glob.glob(pattern):
            with suppress(OSError):
                files[path] = Path(path).read_text(encoding="utf-8", errors="replace")
    return files


def cores(files: Files) -> tuple[Core, ...]:
    """Every present core, by index."""
    indices = _ranges(files.get("/sys/devices/system/cpu/present", ""))
    if not indices:
        indices = [int(n) for n in re.findall(r"^processor\s*:\s*(\d+)", files.get("/proc/cpuinfo", ""), re.M)]
    return tuple(
        Core(
            index,
            max_khz=_number(files.get(f"{_cpufreq(index)}/cpuinfo_max_freq")),
            khz=_number(files.get(f"{_cpufreq(index)}/scaling_cur_freq")),
            governor=files.get(f"{_cpufreq(index)}/scaling_governor", "").strip() or None,
        )
        for index in indices
    )


def thermal(files: Files) -> dict[str, float]:
    """Degrees Celsius by zone type (a number is added where two share one). Implausible readings, which unused zones
    give, are left out."""
    zones: dict[str, float] = {}
    for path in sorted(files, key=_natural):
        match = re.fullmatch(r"(/sys/class/thermal/thermal_zone(\d+))/temp", path)
        raw = _number(files[path]) if match else None
        if match is None or raw is None:
            continue
        celsius = raw / 1000 if abs(raw) >= 1000 else float(raw)  # most kernels say millidegrees, some degrees
        name = files.get(f"{match[1]}/type", "").strip() or f"zone{match[2]}"
        if 0 < celsius < 150:
            zones[name if name not in zones else f"{name}#{match[2]}"] = celsius
    return zones


def memory(files: Files) -> tuple[int | None, int | None]:
    """Total and available bytes."""
    found = dict(re.findall(r"^(\w+):\s+(\d+) kB", files.get("/proc/meminfo", ""), re.M))
    total, available = (found.get(name) for name in ("MemTotal", "MemAvailable"))
    return total and int(total) * 1024, available and int(available) * 1024


def cpu_features(files: Files) -> tuple[str, ...]:
    """Names as the kernel gives them: Arm's Features, x86's flags; those of the first core."""
    match = re.search(r"^(?:Features|flags)\s*:\s*(.*)$", files.get("/proc/cpuinfo", ""), re.M)
    return tuple(sorted(match[1].split())) if match else ()


def cpu_model(files: Files) -> str | None:
    match = re.search(r"^(?:model name|Hardware)\s*:\s*(.*)$", files.get("/proc/cpuinfo", ""), re.M)
    return match[1].strip() if match else None


def load(files: Files) -> float | None:
    """Runnable threads, mean of the last minute."""
    words = files.get("/proc/loadavg", "").split()
    return float(words[0]) if words else None


def _cpufreq(index: int) -> str:
    return f"/sys/devices/system/cpu/cpu{index}/cpufreq"


def _number(text: str | None) -> int | None:
    try:
        return int((text or "").strip())
    except ValueError:
        return None


def _ranges(text: str) -> list[int]:
    """ "0-3,6" -> [0, 1, 2, 3, 6]."""
    indices: list[int] = []
    for part in text.strip().split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if match:
            indices += range(int(match[1]), min(int(match[2] or match[1]) + 1, MAX_CORES))
    return indices


def _natural(text: str) -> list[int | str]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)]
