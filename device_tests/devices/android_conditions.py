"""The state of an Android device from what `adb_scripts.conditions` prints."""

from __future__ import annotations

import re
from collections.abc import Mapping

from device_tests.devices import sysfs
from device_tests.devices.adb_scripts import SECTION
from device_tests.devices.conditions import Battery, Conditions

CHARGING, FULL = 2, 5  # BatteryManager.BATTERY_STATUS_*


def sections(text: str) -> dict[str, str]:
    """Name -> what was printed under it."""
    parts = re.split(rf"^{re.escape(SECTION)}(\S+)[ \t\r]*\n", text, flags=re.MULTILINE)
    return {name: body.strip("\r\n") for name, body in zip(parts[1::2], parts[2::2], strict=True)}


def parse(found: Mapping[str, str]) -> Conditions:
    """found: of `sections`. Whatever is missing or cannot be read is left out."""
    total, available = sysfs.memory(found)
    status, temperatures = _thermalservice(found.get("thermalservice", ""))
    maker, model = _property(found, "ro.product.manufacturer"), _property(found, "ro.product.model")
    soc = [_property(found, "ro.soc.manufacturer"), _property(found, "ro.soc.model")]
    return Conditions(
        model=" ".join(filter(None, (maker, model))) or "Android device",
        soc=" ".join(filter(None, soc)) or _property(found, "ro.board.platform"),
        abi=(_property(found, "ro.product.cpu.abilist") or "").split(",")[0] or None,
        os_build=_property(found, "ro.build.fingerprint"),
        cpu_features=sysfs.cpu_features(found),
        cores=sysfs.cores(found),
        thermal=sysfs.thermal(found) or temperatures,  # a user's build may keep /sys/class/thermal to itself
        thermal_status=status,
        battery=_battery(found.get("battery", "")),
        memory_total=total,
        memory_available=available,
        load=sysfs.load(found),
    )


def abis(found: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(filter(None, (_property(found, "ro.product.cpu.abilist") or "").split(",")))


def is_emulated(found: Mapping[str, str]) -> bool:
    """Whether it calls itself an emulator, as Android's own and ours do."""
    return "1" in (_property(found, "ro.boot.qemu"), _property(found, "ro.kernel.qemu"))


def _property(found: Mapping[str, str], name: str) -> str | None:
    return found.get(name, "").strip() or None


def _battery(text: str) -> Battery | None:
    fields = dict(re.findall(r"^\s*(\w[\w ]*): (-?\d{1,9})\s*$", text, re.MULTILINE))
    if "level" not in fields:
        return None
    tenths, scale = fields.get("temperature"), int(fields.get("scale", 100))
    return Battery(
        level=round(100 * int(fields["level"]) / scale) if scale > 0 else None,
        celsius=int(tenths) / 10 if tenths is not None else None,
        charging=int(fields["status"]) in (CHARGING, FULL) if "status" in fields else None,
    )


def _thermalservice(text: str) -> tuple[int | None, dict[str, float]]:
    """The system's own verdict, and the current temperatures, or the cached ones where there are no others."""
    status = re.search(r"^\s*Thermal Status: (\d)\s*$", text, re.MULTILINE)
    text = text.rpartition("Current temperatures")[2]
    readings = re.findall(r"Temperature\{mValue=(-?\d{1,6}(?:\.\d+)?), mType=\d+, mName=([^,}]+)", text)
    zones = {name: float(value) for value, name in readings if 0 < float(value) < 150}
    return int(status[1]) if status else None, zones
