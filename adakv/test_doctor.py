"""adakv doctor on broken machines: every fault is named with its severity and a remedy, and none is a traceback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from adakv.doctor import operators, places, python, tools
from adakv.doctor.checks import CHECKS
from adakv.doctor.cli import examine
from adakv.doctor.finding import Check, Finding, Machine, Severity, shown

ENVIRONMENT = dict(os.environ)


def broken(**changes: str | None) -> Machine:
    """This machine with other environment variables; None: without."""
    merged: dict[str, str | None] = {**ENVIRONMENT, **changes}
    return Machine({name: value for name, value in merged.items() if value is not None})


def by_subject(findings: Iterable[Finding]) -> dict[str, Finding]:
    return {finding.subject: finding for finding in findings}


def program(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)


def test_no_check_fails_itself_and_all_findings_have_remedies() -> None:
    for finding in examine([c for c in CHECKS if c.name != "operators"], Machine()):
        assert "the check itself failed" not in finding.text
        if finding.severity in (Severity.FATAL, Severity.SILENT, Severity.SLOW):
            assert finding.remedy, finding


def test_the_library_here_loads_and_names_its_instruction_set() -> None:
    found = by_subject(operators.operators(broken(ADAKV_OPS_LIBRARY=None)))
    assert found["operator library"].severity is not Severity.FATAL
    assert "kernels " in found["operator library"].text


def test_paths_below_the_current_folder_are_named_from_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shown(str(tmp_path / "lib" / "a.so")) == "lib/a.so"
    assert shown("/usr/bin/cmake") == "/usr/bin/cmake"


def test_a_damaged_operator_library_is_fatal_and_harms_nobody_else(tmp_path: Path) -> None:
    library = tmp_path / "libadakv_ops.so"
    library.write_bytes(b"\x7fELF" + bytes(100))
    for path in (library, tmp_path / "gone.so"):
        (found,) = operators.operators(broken(ADAKV_OPS_LIBRARY=str(path)))
        assert found.severity is Severity.FATAL
        assert path.name in found.text
        assert "make venv" in found.remedy


def test_a_child_that_dies_names_its_signal() -> None:
    assert "SIGBUS" in operators._death(-7, "")


def test_an_empty_path_finds_no_tools(tmp_path: Path) -> None:
    found = by_subject(tools.tools(broken(PATH=str(tmp_path))))
    assert {f.severity for f in found.values()} == {Severity.INFO}
    assert found["qemu"].remedy == "apt-get install qemu-user-static"


def test_a_tool_that_does_not_start_is_no_tool(tmp_path: Path) -> None:
    program(tmp_path, "adb", "echo cannot open shared object >&2; exit 127")
    found = by_subject(tools.tools(broken(PATH=f"{tmp_path}:{ENVIRONMENT['PATH']}")))
    assert found["adb"].severity is Severity.SILENT
    assert "cannot open shared object" in found["adb"].text


def test_adb_devices_of_every_state() -> None:
    listing = (
        "List of devices attached\n"
        "R5CT device usb:1-1 product:a model:SM_G991B device:o1s transport_id:1\n"
        "emulator-5554 offline\n"
        "XYZ unauthorized usb:1-2\n"
    )
    phone, offline, stranger = tools.adb_devices(listing)
    assert (phone.severity, phone.text) == (Severity.OK, "R5CT SM_G991B")
    assert "offline" in offline.text
    assert "screen" in stranger.remedy
    assert next(tools.adb_devices("List of devices attached\n")).text == "none connected"


def test_an_ndk_that_is_none(tmp_path: Path) -> None:
    found = by_subject(tools.android(broken(PATH=str(tmp_path), ANDROID_NDK_HOME=str(tmp_path))))
    assert found["Android NDK"].severity is Severity.SILENT


def test_pins_that_differ_or_lack() -> None:
    locked = {"torch": "2.13.0", "rich": "15.0.0", "ruff": "0.17.6"}
    found = list(python.compare_pins(locked, {"torch", "rich"}, {"torch": "2.12.0"}))
    assert [f.severity for f in found] == [Severity.FATAL, Severity.SILENT, Severity.INFO]
    assert "rich" in found[0].text
    assert "torch 2.12.0 instead of 2.13.0" in found[1].text
    assert "ruff" in found[2].text
    (fine,) = python.compare_pins(locked, set(locked), locked)
    assert fine.severity is Severity.OK


def test_the_lock_file_is_read() -> None:
    assert python.read_lock(python.LOCK)["huggingface-hub"]


def test_a_cache_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    (found,) = places.cache(broken(ADAKV_CACHE=str(tmp_path / "file" / "cache")))
    assert found.severity is Severity.FATAL
    (empty,) = places.cache(broken(ADAKV_CACHE=str(tmp_path / "new")))
    assert "downloads 100 MB" in empty.text
    (tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"half")
    (corrupt,) = places.cache(broken(ADAKV_CACHE=str(tmp_path)))
    assert corrupt.severity is Severity.SILENT


def test_a_full_disk_is_fatal(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 10_000_000, "total": 20_000_000})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert {f.severity for f in places.disk(Machine())} == {Severity.FATAL}


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a file system of no size: Linux has one")
def test_a_place_that_takes_no_files_is_not_a_full_disk() -> None:
    found = [f for f in places.disk(broken(ADAKV_CACHE="/proc/nohome")) if f.severity is Severity.FATAL]
    assert [f.text for f in found] == ["cache (/proc/nohome): nothing can be written to /proc"]
    assert "ADAKV_CACHE" in found[0].remedy
    (cannot,) = places.cache(broken(ADAKV_CACHE="/proc/nohome"))
    assert cannot.severity is Severity.FATAL


def test_a_check_that_fails_is_a_finding() -> None:
    def fall(machine: Machine) -> Iterable[Finding]:
        raise OSError("no such device")

    (found,) = examine([Check("odd", fall, "")], Machine())  # type: ignore[arg-type]
    assert found.severity is Severity.FATAL
    assert "no such device" in found.text


def run_doctor(*words: str, **changes: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "adakv", "doctor", *words]
    return subprocess.run(command, env=ENVIRONMENT | changes, capture_output=True, text=True, check=False)


def test_the_command_in_a_broken_environment(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    done = run_doctor("--only", "cache", "--json", ADAKV_CACHE=str(tmp_path / "file" / "x"))
    assert done.returncode == 3, done.stderr
    assert json.loads(done.stdout)["findings"][0]["severity"] == "fatal"
    latin = run_doctor("--only", "locale", "--json", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert latin.returncode == 0
    assert json.loads(latin.stdout)["findings"][0]["severity"] == "silent"
    unknown = run_doctor("--only", "weather")
    assert unknown.returncode == 2
    assert "one of python, pins" in unknown.stderr
