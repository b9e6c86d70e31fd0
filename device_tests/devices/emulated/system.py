"""What an emulated device says of itself: properties, /sys and /proc files, dumpsys. Rendered anew for every command,
so that a hot device cools down as time goes by."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DOT_PRODUCT, INT8_MATRICES = "asimddp", "i8mm"
#: qemu's CPU model by what a program may use.
CPUS = {(): "cortex-a53", (DOT_PRODUCT,): "cortex-a76", (DOT_PRODUCT, INT8_MATRICES): "max"}
BASE_FEATURES = ("fp", "asimd", "evtstrm", "aes", "pmull", "sha1", "sha2", "crc32")
THROTTLED_FROM, THROTTLED_SHARE = 45.0, 0.7  # degrees Celsius; share of the top frequency that is left


@dataclass(frozen=True)
class Hardware:
    """A phone with big and little cores. features: beyond BASE_FEATURES, a key of CPUS. hot_celsius: temperature at
    start, which falls to cool_celsius with time constant cooling_seconds. Frequencies in kHz."""

    serial: str = "EMULATED1"
    model: str = "Emulated device"
    abis: tuple[str, ...] = ("arm64-v8a", "armeabi-v7a", "armeabi")
    features: tuple[str, ...] = (DOT_PRODUCT,)
    little_khz: int = 1_804_800
    big_khz: int = 2_841_600
    little: int = 4
    big: int = 4
    hot_celsius: float = 28.0
    cool_celsius: float = 28.0
    cooling_seconds: float = 10.0
    memory_kb: int = 7_800_000
    started: float = field(default_factory=time.monotonic)

    @classmethod
    def like_this_machine(cls, **others: Any) -> Hardware:
        """With as many cores, all alike, so that a core mask means the same here and there."""
        return cls(little=0, big=os.cpu_count() or 1, **others)

    @property
    def cpu(self) -> str:
        """qemu's name for it; "" where arm64 programs do not run at all."""
        return CPUS[self.features] if "arm64-v8a" in self.abis else ""

    @property
    def celsius(self) -> float:
        age = time.monotonic() - self.started
        return self.cool_celsius + (self.hot_celsius - self.cool_celsius) * math.exp(-age / self.cooling_seconds)

    @property
    def properties(self) -> dict[str, str]:
        return {
            "ro.boot.qemu": "1",
            "ro.boot.serialno": self.serial,
            "ro.build.fingerprint": "adakv/emulated/emulated:14/TEST/1:userdebug/test-keys",
            "ro.build.version.release": "14",
            "ro.build.version.sdk": "34",
            "ro.hardware": "emulated",
            "ro.kernel.qemu": "1",
            "ro.product.cpu.abi": self.abis[0],
            "ro.product.cpu.abilist": ",".join(self.abis),
            "ro.product.manufacturer": "AdaKV",
            "ro.product.model": self.model,
            "ro.serialno": self.serial,
            "ro.soc.manufacturer": "QEMU",
            "ro.soc.model": self.cpu or "none",
        }

    def render(self, root: Path, disk_bytes: int, used_bytes: int) -> None:
        """Write the files under root; readers see old or new ones, never a part."""
        celsius, top = self.celsius, [self.little_khz] * self.little + [self.big_khz] * self.big
        share = THROTTLED_SHARE if celsius >= THROTTLED_FROM else 1.0
        files = {
            "sys/devices/system/cpu/present": f"0-{len(top) - 1}",
            "sys/devices/system/cpu/online": f"0-{len(top) - 1}",
            "proc/cpuinfo": self._cpuinfo(len(top)),
            "proc/meminfo": f"MemTotal: {self.memory_kb} kB\nMemFree: 100000 kB\nMemAvailable: 4000000 kB",
            "proc/loadavg": "0.50 0.40 0.30 1/700 4242",
            "sys/class/thermal/thermal_zone0/type": "cpu-big",
            "sys/class/thermal/thermal_zone0/temp": str(round(1000 * (celsius + 4))),
            "sys/class/thermal/thermal_zone1/type": "skin",
            "sys/class/thermal/thermal_zone1/temp": str(round(1000 * celsius)),
            "device/properties": "\n".join(f"{name}={value}" for name, value in self.properties.items()),
            "device/dumpsys/battery": self._battery(celsius),
            "device/dumpsys/thermalservice": self._thermalservice(celsius),
            "device/df": _df(disk_bytes, used_bytes),
        }
        for index, khz in enumerate(top):
            folder = f"sys/devices/system/cpu/cpu{index}/cpufreq"
            files[f"{folder}/cpuinfo_max_freq"] = str(khz)
            files[f"{folder}/scaling_max_freq"] = files[f"{folder}/scaling_cur_freq"] = str(round(khz * share))
            files[f"{folder}/scaling_governor"] = "schedutil"
        for name, text in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            new = path.with_name(f".{path.name}.new")
            new.write_text(text + "\n", encoding="utf-8")
            os.replace(new, path)

    def _cpuinfo(self, count: int) -> str:
        features = " ".join(BASE_FEATURES + self.features)
        return "\n\n".join(f"processor\t: {i}\nFeatures\t: {features}\nCPU implementer\t: 0x41" for i in range(count))

    def _battery(self, celsius: float) -> str:
        return (
            "Current Battery Service state:\n  AC powered: false\n  USB powered: true\n  Wireless powered: false\n"
            "  status: 2\n  health: 2\n  present: true\n  level: 85\n  scale: 100\n  voltage: 4100\n"
            f"  temperature: {round(10 * celsius)}\n  technology: Li-ion"
        )

    def _thermalservice(self, celsius: float) -> str:
        status = 3 if celsius >= THROTTLED_FROM else 0
        return (
            f"IsStatusOverride: false\nThermal Status: {status}\nCached temperatures:\n"
            f"\tTemperature{{mValue={celsius:.1f}, mType=3, mName=skin, mStatus={status}}}\nHAL Ready: true\n"
            "Current temperatures from HAL:\n"
            f"\tTemperature{{mValue={celsius + 4:.1f}, mType=0, mName=CPU0, mStatus=0}}\n"
            f"\tTemperature{{mValue={celsius:.1f}, mType=3, mName=skin, mStatus={status}}}"
        )


def _df(disk_bytes: int, used_bytes: int) -> str:
    total, used = disk_bytes // 1024, used_bytes // 1024
    return (
        "Filesystem       1K-blocks     Used Available Use% Mounted on\n"
        f"/dev/block/dm-5 {total:10d} {used:8d} {max(0, total - used):9d} {100 * used // max(1, total)}% /data"
    )
