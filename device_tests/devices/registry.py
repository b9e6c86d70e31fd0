"""From a selector, such as "adb:emulator-5554", to devices."""

from __future__ import annotations

import importlib

from adakv_model.errors import UserError
from device_tests.devices.device import Device

#: Word before the colon -> module with `find(name: str | None) -> list[Device]`. Imported only when asked for.
TRANSPORTS = {
    "host": "device_tests.devices.host",
    "qemu": "device_tests.devices.qemu",
    "adb": "device_tests.devices.adb",
    "simulator": "device_tests.devices.simulator",
    "mac": "device_tests.devices.mac",
    "ios": "device_tests.devices.ios",
}


def find(selector: str) -> list[Device]:
    """All devices that match; at least one. "adb" is every phone connected, "adb:SERIAL" one. Raises UserError."""
    word, colon, name = selector.partition(":")
    if word not in TRANSPORTS or (colon and not name):
        raise UserError(
            f"unknown device {selector!r}: one of {', '.join(TRANSPORTS)}, with :NAME to choose among several"
        )
    found: list[Device] = importlib.import_module(TRANSPORTS[word]).find(name or None)
    if not found:
        raise UserError(f"no device matches {selector!r}")
    return found


def find_one(selector: str) -> Device:
    """The only match. Raises UserError where there are several."""
    found = find(selector)
    if len(found) > 1:
        names = ", ".join(device.selector for device in found)
        raise UserError(f"{selector} is {len(found)} devices: choose one of {names}")
    return found[0]
