"""python -m device_tests.devices.emulated: an emulated device until it is interrupted, to try commands by hand."""

from __future__ import annotations

import signal
import sys

from device_tests.devices.emulated import EmulatedDevice, Hardware


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with EmulatedDevice(Hardware.like_this_machine()) as device:
        print(f"adb connect {device.address}", flush=True)
        try:
            signal.pause()
        except KeyboardInterrupt:
            print()


if __name__ == "__main__":
    main()
