"""What a phone says of itself, as text; no phone is needed to read it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from device_tests.devices import android_conditions
from device_tests.devices.conditions import Battery

PHONE = """
==> /sys/devices/system/cpu/present
0-1

==> /sys/devices/system/cpu/cpu1/cpufreq/cpuinfo_max_freq
2841600

==> /proc/cpuinfo
processor\t: 0
Features\t: fp asimd asimddp i8mm

==> ro.product.manufacturer
Google

==> ro.product.model
Pixel 8

==> ro.product.cpu.abilist
arm64-v8a

==> ro.soc.manufacturer
Google

==> ro.soc.model
Tensor G3

==> ro.boot.qemu


==> battery
Current Battery Service state:
  AC powered: false
  USB powered: true
  status: 3
  level: 41
  scale: 50
  temperature: 291

==> thermalservice
IsStatusOverride: false
Thermal Status: 2
Cached temperatures:
\tTemperature{mValue=20.0, mType=3, mName=old, mStatus=0}
Current temperatures from HAL:
\tTemperature{mValue=44.5, mType=0, mName=BIG, mStatus=0}
\tTemperature{mValue=-273.0, mType=4, mName=broken, mStatus=0}
Current cooling devices from HAL:
\tCoolingDevice{mValue=0, mType=2, mName=cdev}
"""


def test_a_phone() -> None:
    found = android_conditions.sections(PHONE)
    conditions = android_conditions.parse(found)
    assert (conditions.model, conditions.soc, conditions.abi) == ("Google Pixel 8", "Google Tensor G3", "arm64-v8a")
    assert conditions.battery == Battery(level=82, celsius=29.1, charging=False)
    assert (conditions.thermal_status, conditions.thermal) == (2, {"BIG": 44.5})  # no /sys/class/thermal
    assert [core.max_khz for core in conditions.cores] == [None, 2841600]
    assert conditions.memory_total is None
    assert not android_conditions.is_emulated(found)
    assert android_conditions.is_emulated({"ro.kernel.qemu": "1\n"})


@given(st.text(), st.dictionaries(st.sampled_from(["battery", "thermalservice", "ro.soc.model"]), st.text(max_size=60)))
def test_nothing_a_phone_says_is_an_error(text: str, found: dict[str, str]) -> None:
    android_conditions.parse(android_conditions.sections(PHONE + text))
    android_conditions.parse(found)
    android_conditions.abis(found)
