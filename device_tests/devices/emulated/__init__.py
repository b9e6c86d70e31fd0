"""An emulated device: a TCP daemon that a real `adb` client takes for a phone, for tests. Never a phone's results."""

from device_tests.devices.emulated.device import EmulatedDevice
from device_tests.devices.emulated.faults import Faults
from device_tests.devices.emulated.system import Hardware

__all__ = ["EmulatedDevice", "Faults", "Hardware"]
