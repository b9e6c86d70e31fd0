"""The adb transport: the real adb client, an emulated device, arm64 programs under qemu."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adakv_model.errors import UserError
from device_tests.devices import Bundle, BundleFile, RunTimeout, find, find_one
from device_tests.devices.adb import AdbDevice
from device_tests.devices.adb_scripts import HASHES, INCOMING, ROOT
from device_tests.devices.emulated import EmulatedDevice, Hardware
from device_tests.devices.emulated.testing import connect, connected, probe_bundle


@pytest.fixture(scope="module")
def emulated(server: int) -> Iterator[EmulatedDevice]:
    with EmulatedDevice() as device, connected(device):
        yield device


@pytest.fixture
def device(emulated: EmulatedDevice) -> Iterator[AdbDevice]:
    found = find_one(f"adb:{emulated.address}")
    assert isinstance(found, AdbDevice)
    yield found
    found.clean()
    assert emulated.processes() == []
    emulated_files = emulated.path(f"{ROOT}/{INCOMING}")
    assert not emulated_files.exists() or not list(emulated_files.iterdir())


def test_it_is_called_emulated(device: AdbDevice) -> None:
    assert (device.kind, device.emulated) == ("adb", True)


def test_run_status_output_and_pull(device: AdbDevice, program: Path, tmp_path: Path) -> None:
    bundle = probe_bundle(program)
    device.check(bundle)
    assert device.push(bundle) == ROOT
    done = device.run(bundle, ["exit", "3"], 20)
    assert (done.status, done.stdout, done.stderr) == (3, "", "error: as asked\n")
    assert device.run(bundle, ["crash"], 20).status == 134
    assert device.run(bundle, ["write", "out/file"], 20).status == 0
    device.pull("out/file", tmp_path / "file")
    device.pull("out", tmp_path / "folder")
    assert (
        (tmp_path / "file").read_text(encoding="utf-8")
        == (tmp_path / "folder" / "file").read_text(encoding="utf-8")
        == "written"
    )
    with pytest.raises(UserError, match="has no out/other"):
        device.pull("out/other", tmp_path / "other")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_only_what_changed_is_sent(device: AdbDevice, emulated: EmulatedDevice, program: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(b"1" * 1000)
    second.write_bytes(b"2" * 1000)
    bundle = probe_bundle(program, a=first, b=second, **{"artifacts/x/again": second})
    device.push(bundle)
    assert {"a", "b", "artifacts/x/again"} <= set(device.sent)

    before = emulated.bytes_received
    device.push(bundle)
    assert (device.sent, emulated.bytes_received) == ([], before)

    second.write_bytes(b"3" * 1000)  # of the same size
    device.push(probe_bundle(program, a=first, b=second))
    assert (device.sent, emulated.bytes_received) == (["b"], before + 1000)
    assert emulated.path(f"{ROOT}/b").read_bytes() == b"3" * 1000
    assert emulated.path(f"{ROOT}/artifacts/x/again").read_bytes() == b"2" * 1000

    emulated.path(f"{ROOT}/a").write_bytes(b"damaged")
    os.utime(emulated.path(f"{ROOT}/b"), (1, 1))  # touched, not changed: hashed there instead of sent
    device.push(probe_bundle(program, a=first, b=second))
    assert device.sent == ["a"]
    assert emulated.path(f"{ROOT}/a").read_bytes() == b"1" * 1000

    emulated.path(f"{ROOT}/{HASHES}").unlink()
    device.push(probe_bundle(program, a=first, b=second))
    assert device.sent == []
    emulated.path(f"{ROOT}/{HASHES}").write_text("no list\n of ours 1 2 \0\n", encoding="utf-8")
    device.push(probe_bundle(program, a=first, b=second))
    assert device.sent == []


def test_a_large_artifact_goes_over_quickly(
    device: AdbDevice, program: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    large = tmp_path / "model.pte"
    large.write_bytes(os.urandom(1_000_000) * 90)
    bundle = probe_bundle(program, **{"artifacts/large/model.pte": large})
    start = time.monotonic()
    device.push(bundle)
    first = time.monotonic() - start
    start = time.monotonic()
    device.push(bundle)
    with capsys.disabled():
        print(f"\n90 MB pushed in {first:.1f} s, and found there in {time.monotonic() - start:.2f} s")
    assert first < 10
    assert device.sent == []


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30), max_size=20))
def test_words_arrive_as_they_are(device: AdbDevice, program: Path, words: list[str]) -> None:
    bundle = probe_bundle(program)
    if not device.sent:
        device.push(bundle)
        device.sent = ["probe"]
    done = device.run(bundle, ["words", *words], 60)
    expected = "".join(f"{len(word.encode())}:{word}\n" for word in words)
    assert done.stdout == expected.replace("\r\n", "\n").replace("\r", "\n")  # output is read as text


HOSTILE = ["a b", "$(touch x)", "`id`", "';rm -rf .;'", '"', "-rf", "*", "&& true", "é|x", "%s", "#", "~", "\\n"]


def test_names_of_files_are_only_names(
    device: AdbDevice, emulated: EmulatedDevice, program: Path, tmp_path: Path
) -> None:
    sources = {}
    for index, name in enumerate(HOSTILE):
        path = tmp_path / str(index) / name
        path.parent.mkdir()
        path.write_text(name, encoding="utf-8")
        sources[f"artifacts/{index}/{name}"] = BundleFile.of(path)
        sources[name] = BundleFile.of(path)
    bundle = Bundle({"probe": BundleFile.of(program, True), **sources}, ("./probe",))
    device.check(bundle)
    device.push(bundle)
    for name in sources:
        assert emulated.path(f"{ROOT}/{name}").read_text(encoding="utf-8") == Path(name).name
    device.push(bundle)
    assert device.sent == []
    device.pull("artifacts/1/" + HOSTILE[1], tmp_path / "back")
    assert (tmp_path / "back").read_text(encoding="utf-8") == HOSTILE[1]
    assert not emulated.path(f"{ROOT}/x").exists()


@pytest.mark.parametrize("name", ["../escape", "/etc/x", "a/../../b", "new\nline", "a//b", "./a"])
def test_names_that_leave_the_folder_are_refused(device: AdbDevice, program: Path, name: str) -> None:
    with pytest.raises(UserError, match="is no name for a file on a device"):
        device.push(probe_bundle(program, **{name: program}))


@pytest.mark.parametrize("serial", ["--help", "x; rm -rf /", "-s", "$(id)", "a b", "127.0.0.1"])
def test_a_serial_is_only_compared(server: int, serial: str) -> None:
    with pytest.raises(UserError, match="adb lists no device"):
        find(f"adb:{serial}")


def test_a_run_past_its_time_is_ended(device: AdbDevice, emulated: EmulatedDevice, program: Path) -> None:
    bundle = probe_bundle(program)
    device.push(bundle)
    start = time.monotonic()
    with pytest.raises(RunTimeout, match=r"went past 1\.5 s"):
        device.run(bundle, ["sleep", "600"], 1.5)
    assert time.monotonic() - start < 15
    assert emulated.processes() == []


def test_only_its_own_process_is_ended(device: AdbDevice, emulated: EmulatedDevice, program: Path) -> None:
    bundle = probe_bundle(program)
    device.push(bundle)
    other = AdbDevice(connect(emulated)).client
    other.shell("cd /data/local/tmp/adakv; nohup ./probe sleep 300 >/dev/null 2>&1 & echo $! 7 >run.pid")
    (theirs,) = emulated.processes()
    device.run(bundle, ["exit", "0"], 20)  # a recorded number with another start time
    assert emulated.processes() == [theirs]
    device.clean()
    assert emulated.processes() == [theirs]
    other.shell(f"kill -9 {theirs}")


def test_a_process_left_over_is_ended(device: AdbDevice, emulated: EmulatedDevice, program: Path) -> None:
    """As after a session that lost its device and was killed itself."""
    bundle = probe_bundle(program)
    device.push(bundle)
    device.client.shell(
        "cd /data/local/tmp/adakv; nohup ./probe sleep 300 >/dev/null 2>&1 & pid=$!; set -- $(cat /proc/$pid/stat);"
        " echo $pid ${22} >run.pid"
    )
    assert len(emulated.processes()) == 1
    assert device.run(bundle, ["exit", "4"], 20).status == 4
    assert emulated.processes() == []


def test_two_sessions_on_one_device(device: AdbDevice, program: Path) -> None:
    device.push(probe_bundle(program))
    with pytest.raises(UserError, match="is in use by another run"):
        AdbDevice(device.client).push(probe_bundle(program))


def test_several_devices_at_once(server: int, emulated: EmulatedDevice, program: Path) -> None:
    with (
        EmulatedDevice(Hardware(serial="second")) as second,
        EmulatedDevice(Hardware(serial="third")) as third,
        connected(second),
        connected(third),
    ):
        devices = [d for d in find("adb") if isinstance(d, AdbDevice)]
        assert {d.serial for d in devices} == {emulated.address, second.address, third.address}
        with pytest.raises(UserError, match="adb is 3 devices: choose one of"):
            find_one("adb")

        def work(device: AdbDevice) -> str:
            bundle = probe_bundle(program)
            device.push(bundle)
            try:
                return device.run(bundle, ["words", device.serial], 60).stdout
            finally:
                device.clean()

        with ThreadPoolExecutor(3) as pool:
            said = list(pool.map(work, devices))
        assert said == [f"{len(d.serial)}:{d.serial}\n" for d in devices]
