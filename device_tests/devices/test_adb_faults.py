"""What goes wrong with a phone: one clear line with the remedy, within its time, nothing left running or half there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from adakv_model.errors import UserError
from device_tests.devices import Bundle, BundleFile, DeviceLost, find
from device_tests.devices.adb import AdbDevice
from device_tests.devices.adb_client import AdbClient
from device_tests.devices.adb_scripts import INCOMING, ROOT
from device_tests.devices.emulated import EmulatedDevice, Faults, Hardware
from device_tests.devices.emulated.testing import connect, connected, disconnect, probe_bundle

Start = Callable[..., tuple[EmulatedDevice, AdbDevice]]
pytestmark = pytest.mark.usefixtures("server")


@pytest.fixture
def start() -> Iterator[Start]:
    """start(hardware, faults) -> a device and its transport. At the end nothing of it may be left."""
    with ExitStack() as stack:
        started = []

        def one(hardware: Hardware | None = None, faults: Faults | None = None, **options: float):  # type: ignore[no-untyped-def]
            emulated = stack.enter_context(EmulatedDevice(hardware, faults))
            client = stack.enter_context(connected(emulated))
            client.answer = options.pop("answer", client.answer)
            started.append((emulated, AdbDevice(client, **options)))
            return started[-1]

        yield one
        for emulated, device in started:
            device.clean()
            assert emulated.processes() == []


@contextmanager
def within(seconds: float) -> Iterator[None]:
    begin = time.monotonic()
    yield
    assert time.monotonic() - begin < seconds


def large(tmp_path: Path, program: Path, size: int = 8_000_000) -> Bundle:
    path = tmp_path / "model.pte"
    path.write_bytes(bytes(size))
    return probe_bundle(program, **{"artifacts/1/model.pte": path})


def in_place(emulated: EmulatedDevice) -> set[str]:
    """Files of bundles on the device, whole or not."""
    root = emulated.path(ROOT)
    return {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file() and INCOMING not in p.parts}


def reconnect(emulated: EmulatedDevice) -> None:
    disconnect(emulated)
    connect(emulated)


def test_no_phone() -> None:
    with within(20), pytest.raises(UserError, match="no phone: connect one by cable with USB debugging on"):
        find("adb")


def test_no_adb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="adb is missing: apt-get install adb"):
        find("adb")


def test_unauthorised_and_offline_are_said_and_left_out(
    start: Start, server: int, caplog: pytest.LogCaptureFixture
) -> None:
    with EmulatedDevice(faults=Faults(authorised=False)) as locked, connected(locked, expected="unauthorized"):
        with pytest.raises(UserError, match=f"{locked.address} is unauthorized: unlock it and accept the question"):
            find("adb")
        with pytest.raises(UserError, match="unlock it"):
            find(f"adb:{locked.address}")
        good, _ = start()
        gone, device = start()
        gone.unplug()
        assert device.client.state() == "offline"
        assert [one.selector for one in find("adb")] == [f"adb:{good.address}"]
        assert f"left out: {gone.address} is offline: reconnect its cable" in caplog.text
        with pytest.raises(UserError, match="is offline: reconnect its cable"):
            find(f"adb:{gone.address}")
        with within(30), pytest.raises(DeviceLost, match="was lost; .* is offline: reconnect"):
            device.conditions()


@pytest.mark.parametrize("abis", [("x86_64", "x86"), ("armeabi-v7a", "armeabi")])
def test_wrong_abi(start: Start, program: Path, abis: tuple[str, ...]) -> None:
    _, device = start(Hardware(abis=abis))
    with pytest.raises(UserError, match=f"runs {', '.join(abis)} and the runner is for arm64-v8a: use another device"):
        device.check(probe_bundle(program))
    device.push(probe_bundle(program))
    with pytest.raises(UserError, match="the runner does not start"):
        device.run(probe_bundle(program), ["exit", "0"], 20)


@pytest.mark.parametrize(
    ("has", "wants", "lacks"),
    [((), ("asimddp",), "asimddp"), (("asimddp",), ("asimddp", "i8mm"), "i8mm"), (("asimddp", "i8mm"), ("i8mm",), "")],
)
def test_cpu_features(start: Start, program: Path, has: tuple[str, ...], wants: tuple[str, ...], lacks: str) -> None:
    _, device = start(Hardware(features=has))
    runner = probe_bundle(program)
    bundle = Bundle(runner.files, runner.command, runner.abi, wants)
    if not lacks:
        device.check(bundle)
        return
    with pytest.raises(UserError, match=f"has no {lacks}, which the runner needs"):
        device.check(bundle)


def test_no_space(start: Start, program: Path, tmp_path: Path) -> None:
    emulated, device = start(faults=Faults(disk_bytes=6_000_000))
    bundle = large(tmp_path, program)
    with pytest.raises(
        UserError, match=r"no space on .* \(\d+ MB needed, [56] MB free\): free some; `adb -s .* shell rm"
    ):
        device.check(bundle)
    with within(30), pytest.raises(UserError, match=r"no space on .* \(\d+ MB needed\): free some"):
        device.push(bundle)
    assert in_place(emulated) == set()
    assert not list(emulated.path(f"{ROOT}/{INCOMING}").glob("*"))


@pytest.mark.parametrize("returns", [True, False])
def test_the_connection_breaks_during_a_push(start: Start, program: Path, tmp_path: Path, returns: bool) -> None:
    emulated, device = start(faults=Faults(drop_push_after=4_000_000, returns=returns))
    bundle = large(tmp_path, program)
    with within(60), pytest.raises(DeviceLost, match="the connection to .* was lost"):
        device.push(bundle)
    assert in_place(emulated) == set()
    if not returns:
        emulated.plug_in()
    reconnect(emulated)
    device.push(bundle)
    assert set(device.sent) == {"probe", "artifacts/1/model.pte"}
    assert device.run(bundle, ["exit", "5"], 20).status == 5


@pytest.mark.parametrize("returns", [True, False])
def test_the_connection_breaks_during_a_run(start: Start, program: Path, returns: bool) -> None:
    emulated, device = start(faults=Faults(drop_run_after=0.3, returns=returns))
    bundle = probe_bundle(program)
    device.push(bundle)
    with within(60), pytest.raises(DeviceLost, match="the connection to .* was lost"):
        device.run(bundle, ["sleep", "300"], 200)
    if not returns:
        emulated.plug_in()
    reconnect(emulated)
    assert device.run(bundle, ["exit", "5"], 20).status == 5
    assert emulated.processes() == []


def test_a_device_that_falls_silent(start: Start, program: Path) -> None:
    emulated, device = start(answer=1.5)
    emulated.faults = Faults(bytes_per_second=1.0)
    with within(30), pytest.raises(DeviceLost, match=r"did not answer within 1\.5 s: reconnect it"):
        device.conditions()


def test_a_slow_link(start: Start, program: Path, tmp_path: Path) -> None:
    emulated, device = start(faults=Faults(bytes_per_second=2e5), answer=4.0, slowest=8e6)
    with within(60), pytest.raises(UserError, match="is slower than 8 MB/s: use another cable or port"):
        device.push(large(tmp_path, program))
    assert in_place(emulated) == set()


@pytest.mark.parametrize(("signal", "status"), [(9, 137), (11, 139)])
def test_a_runner_that_is_killed(start: Start, program: Path, signal: int, status: int) -> None:
    """Low memory, and a crash: statuses, not exceptions; what it said before is kept."""
    emulated, device = start(faults=Faults(kill_signal=signal))
    bundle = probe_bundle(program)
    device.push(bundle)
    done = device.run(bundle, ["sleep", "300"], 60)
    assert (done.status, done.stdout) == (status, "started\n")
    assert emulated.processes() == []
    emulated.faults = Faults()
    assert device.run(bundle, ["exit", "0"], 20).status == 0


def test_a_runner_that_is_not_there(start: Start, program: Path) -> None:
    emulated, device = start()
    bundle = Bundle({"other": BundleFile.of(program)}, ("./probe",), "arm64-v8a")
    device.push(bundle)
    with pytest.raises(UserError, match="the runner does not start on .*not found"):
        device.run(bundle, [], 20)
    emulated.path(f"{ROOT}/probe").write_bytes(b"")
    with pytest.raises(UserError, match="the runner does not start on "):
        device.run(bundle, [], 20)


def test_a_hot_phone_cools_down(start: Start) -> None:
    emulated, device = start(Hardware(hot_celsius=60.0, cool_celsius=30.0, cooling_seconds=2.0))
    hot = device.conditions()
    assert hot.celsius is not None
    assert hot.celsius > 35
    time.sleep(2)
    warm = device.conditions()
    assert warm.celsius is not None
    assert warm.celsius < hot.celsius
    assert emulated.hardware.celsius < 60


def test_conditions_of_a_phone(start: Start) -> None:
    _, device = start(Hardware(hot_celsius=50.0, cool_celsius=50.0))
    found = device.conditions()
    assert (found.model, found.soc, found.abi) == ("AdaKV Emulated device", "QEMU cortex-a76", "arm64-v8a")
    assert "asimddp" in found.cpu_features
    assert [core.max_khz for core in found.cores] == [1_804_800] * 4 + [2_841_600] * 4
    assert {round((core.khz or 0) / (core.max_khz or 1), 2) for core in found.cores} == {0.7}
    assert {core.governor for core in found.cores} == {"schedutil"}
    assert found.thermal == {"cpu-big": 54.0, "skin": 50.0}
    assert found.thermal_status == 3
    assert found.battery is not None
    assert (found.battery.level, found.battery.celsius, found.battery.charging) == (85, 50.0, True)
    assert found.memory_total == 7_800_000 * 1024
    assert found.load == 0.5


def test_calls_without_a_mark_are_not_believed(start: Start) -> None:
    """An old client says 0 when the connection breaks."""
    _, device = start()
    assert isinstance(device.client, AdbClient)
    with pytest.raises(DeviceLost, match="it is back"):
        device.client.shell("exit 0")
