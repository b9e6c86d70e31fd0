"""Devices that are processes of this machine, with a shell script as the runner."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from adakv_model.errors import UserError
from device_tests.devices import Bundle, BundleFile, RunTimeout, find, find_one
from device_tests.devices.local import LocalDevice


@pytest.fixture
def device():
    device = LocalDevice("host", "x86_64")
    yield device
    device.clean()


def script(tmp_path: Path, text: str) -> Bundle:
    path = tmp_path / "script"
    path.write_text("#!/bin/sh\n" + text, encoding="utf-8")
    path.chmod(0o755)
    return Bundle({"script": BundleFile.of(path, executable=True)}, ("./script",), "x86_64")


def test_run_and_pull(device: LocalDevice, tmp_path: Path) -> None:
    bundle = script(tmp_path, 'cat in/tokens; echo "$1" > out/said; echo note >&2; exit 3\n')
    (tmp_path / "list").write_text("1 2 3\n", encoding="utf-8")
    device.push(bundle.with_inputs({"tokens": tmp_path / "list"}))
    done = device.run(bundle, ["a b; $(c)"], 10)
    assert (done.status, done.stdout, done.stderr) == (3, "1 2 3\n", "note\n")
    device.pull("out/said", tmp_path / "said")
    assert (tmp_path / "said").read_text(encoding="utf-8") == "a b; $(c)\n"
    with pytest.raises(UserError, match="has no out/other"):
        device.pull("out/other", tmp_path / "other")


def test_a_command_that_hangs_is_ended_with_its_children(device: LocalDevice, tmp_path: Path) -> None:
    bundle = script(tmp_path, f"(sleep 3; touch {tmp_path}/survived) & sleep 60\n")
    device.push(bundle)
    start = time.monotonic()
    with pytest.raises(RunTimeout, match=r"ran past 0\.5 s"):
        device.run(bundle, [], 0.5)
    assert time.monotonic() - start < 2.5
    time.sleep(3)
    assert not (tmp_path / "survived").exists()


def test_a_signal_is_a_status(device: LocalDevice, tmp_path: Path) -> None:
    bundle = script(tmp_path, "kill -9 $$\n")
    device.push(bundle)
    assert device.run(bundle, [], 10).status == 137


def test_clean_leaves_nothing(device: LocalDevice, tmp_path: Path) -> None:
    folder = Path(device.push(script(tmp_path, "true\n")))
    assert folder.is_dir()
    device.clean()
    assert not folder.exists()
    with pytest.raises(UserError, match="nothing was pushed"):
        device.run(script(tmp_path, "true\n"), [], 1)


def test_a_bundle_of_another_machine_is_refused(device: LocalDevice) -> None:
    with pytest.raises(UserError, match="the bundle is for arm64-v8a"):
        device.check(Bundle({}, (), "arm64-v8a"))


def test_selectors() -> None:
    host = find_one("host")
    assert (host.selector, host.kind, host.emulated) == ("host", "host", True)
    assert host.conditions().cores
    for wrong in ("", "phone", "host:", "host:other", "adb:"):
        with pytest.raises(UserError):
            find(wrong)
