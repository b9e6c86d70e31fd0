"""Machines that run an exported artifact: one protocol, one file a transport."""

from device_tests.devices.bundle import Bundle, BundleFile
from device_tests.devices.conditions import Battery, Conditions, Core
from device_tests.devices.device import Completed, Device, DeviceLost, RunTimeout
from device_tests.devices.registry import find, find_one

__all__ = [
    "Battery",
    "Bundle",
    "BundleFile",
    "Completed",
    "Conditions",
    "Core",
    "Device",
    "DeviceLost",
    "RunTimeout",
    "find",
    "find_one",
]
