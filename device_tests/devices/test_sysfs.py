"""Reading a Linux device's own files: a big.LITTLE phone, this machine, and nonsense."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from device_tests.devices import sysfs

PHONE = {
    "/sys/devices/system/cpu/present": "0-7\n",
    **{
        f"/sys/devices/system/cpu/cpu{i}/cpufreq/cpuinfo_max_freq": f"{1800000 if i < 6 else 2850000}\n"
        for i in range(8)
    },
    "/sys/devices/system/cpu/cpu7/cpufreq/scaling_cur_freq": "900000\n",
    "/sys/devices/system/cpu/cpu7/cpufreq/scaling_governor": "schedutil\n",
    "/sys/class/thermal/thermal_zone0/type": "battery\n",
    "/sys/class/thermal/thermal_zone0/temp": "31500\n",
    "/sys/class/thermal/thermal_zone1/type": "cpu\n",
    "/sys/class/thermal/thermal_zone1/temp": "44\n",
    "/sys/class/thermal/thermal_zone10/type": "cpu\n",
    "/sys/class/thermal/thermal_zone10/temp": "45000\n",
    "/sys/class/thermal/thermal_zone2/type": "unused\n",
    "/sys/class/thermal/thermal_zone2/temp": "-274000\n",
    "/proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\n\nprocessor\t: 1\n",
    "/proc/meminfo": "MemTotal:        7900000 kB\nMemFree: 1 kB\nMemAvailable:    3000000 kB\n",
    "/proc/loadavg": "1.25 0.5 0.1 2/700 1234\n",
}


def test_a_phone() -> None:
    cores = sysfs.cores(PHONE)
    assert [core.max_khz for core in cores] == [1800000] * 6 + [2850000] * 2
    assert (cores[7].khz, cores[7].governor, cores[0].governor) == (900000, "schedutil", None)
    assert sysfs.thermal(PHONE) == {"battery": 31.5, "cpu": 44.0, "cpu#10": 45.0}
    assert sysfs.memory(PHONE) == (7900000 * 1024, 3000000 * 1024)
    assert sysfs.cpu_features(PHONE) == ("asimd", "asimddp", "fp", "i8mm")
    assert sysfs.load(PHONE) == 1.25


def test_this_machine() -> None:
    files = sysfs.read_local()
    assert len(sysfs.cores(files)) >= 1
    total, available = sysfs.memory(files)
    assert total is not None
    assert available is not None
    assert 0 < available <= total


@given(st.dictionaries(st.sampled_from(list(PHONE)), st.text(max_size=40)))
def test_nothing_a_device_says_is_an_error(files: dict[str, str]) -> None:
    sysfs.cores(files)
    sysfs.thermal(files)
    sysfs.memory(files)
    sysfs.cpu_features(files)
