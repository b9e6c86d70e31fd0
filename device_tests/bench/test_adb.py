"""The whole way: the real adb client, an emulated device, the arm64 runner under qemu, and the results of it.

Correct results, and times that say nothing about a phone: every one of them is labelled as emulation.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from adakv_model.command_line import Exit
from adakv_model.runtime.artifact import Artifact
from device_tests.bench.cooling import Cooling
from device_tests.bench.rows import PROBE, SAMPLE, Row, read, sample_key
from device_tests.devices.adb import AdbDevice
from device_tests.devices.adb_scripts import ROOT as REMOTE
from device_tests.devices.emulated import EmulatedDevice, Faults, Hardware
from device_tests.devices.emulated.testing import connect, connected, disconnect
from device_tests.exporting import ROOT, export_once
from export.device_bundle import write_device_bundle

SHORT = ["--pp", "16", "--tg", "8", "--threads", "1"]
pytestmark = pytest.mark.usefixtures("server")


@pytest.fixture
def phone() -> Iterator[EmulatedDevice]:
    with EmulatedDevice(Hardware.like_this_machine()) as device, connected(device):
        yield device
        assert device.processes() == []


@pytest.fixture(scope="module")
def tiny(tiny_artifact: Callable[..., Artifact]) -> list[Path]:
    return [tiny_artifact(quantize="none", policy=policy).folder for policy in ("adaptive", "fp16")]


def bench(out: Path, *options: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "device_tests.bench", "--device", "adb", "--json", out, *options]
    words = [str(word) for word in command]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=800)


def samples(out: Path) -> list[Row]:
    return [one for one in read(out) if one["kind"] == SAMPLE]


def test_the_real_model_is_right_and_its_report_says_emulation(
    phone: EmulatedDevice,
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """SmolLM2-135M: 64 tokens prefilled and 32 fed one by one, logits against this machine's."""
    given = request.config.getoption("--artifact")
    artifact = Path(given) if given else export_once(tmp_path_factory, ("--logits", "all"))
    out = tmp_path / "x.jsonl"
    done = bench(out, "--artifact", artifact, *SHORT, "--reps", "1", "--plot", tmp_path / "plot.png")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "emulated device, not a phone" in done.stdout
    (probe,) = (one for one in read(out) if one["kind"] == PROBE)
    with capsys.disabled():
        print(f"\n{done.stdout}\nparity: {json.dumps(probe['agreement'])}")
    assert probe["passed"]
    assert probe["agreement"]["mean_kl"] < 1e-4
    assert len(samples(out)) == 2
    for one in samples(out):
        assert one["device"]["emulated"]
        assert one["device"]["abi"] == "arm64-v8a"
        assert one["result"]["finish_reason"] == "done"
        assert one["artifact"]["model"].startswith("smollm2-135m")

    sent = phone.bytes_received
    again = bench(out, "--artifact", artifact, *SHORT, "--reps", "1", "--resume")
    assert again.returncode == 0, again.stderr
    assert "2 of 2 runs are in" in again.stderr
    assert phone.bytes_received == sent
    assert len(samples(out)) == 2


def test_a_lost_device_loses_nothing_finished(phone: EmulatedDevice, tiny: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "x.jsonl"
    options: list[str | Path] = ["--artifact", tiny[0], "--artifact", tiny[1], *SHORT, "--reps", "3"]
    phone.faults = Faults(drop_run_after=0.0, healthy_runs=5)  # two probes and three samples
    lost = bench(out, *options)
    assert lost.returncode == Exit.CHECK, lost.stderr
    (line,) = [line for line in lost.stderr.splitlines() if line.startswith("error: ")]
    assert "was lost" in line
    assert line.endswith("of 12 runs are kept, --resume does the rest")
    kept = samples(out)
    assert len(kept) == 3
    assert phone.processes() == []

    disconnect(phone)
    connect(phone)
    rest = bench(out, *options, "--resume")
    assert rest.returncode == 0, rest.stderr
    assert "3 of 12 runs are in" in rest.stderr
    assert samples(out)[:3] == kept
    assert len({sample_key(one) for one in samples(out)}) == len(samples(out)) == 12
    assert "verdict" in rest.stdout


def test_a_phone_short_of_memory(phone: EmulatedDevice, tiny: list[Path], tmp_path: Path) -> None:
    """Every runner is killed; each failure is a line, the exit code 3, and there is no sample."""
    phone.faults = Faults(kill_signal=9, kill_after=0.0)
    done = bench(tmp_path / "x.jsonl", "--artifact", tiny[0], *SHORT)
    assert done.returncode == Exit.CHECK
    assert "killed (status 137): the device ran out of memory" in done.stdout + done.stderr
    assert samples(tmp_path / "x.jsonl") == []


def test_a_phone_that_cannot_be_used_leaves_no_file(tiny: list[Path], tmp_path: Path) -> None:
    with EmulatedDevice(faults=Faults(authorised=False)) as locked, connected(locked, expected="unauthorized"):
        done = bench(tmp_path / "x.jsonl", "--artifact", tiny[0], *SHORT)
    assert done.returncode == 2
    assert f"error: {locked.address} is unauthorized: unlock it and accept the question" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_two_phones_at_once(phone: EmulatedDevice, tiny: list[Path], tmp_path: Path) -> None:
    with EmulatedDevice(Hardware.like_this_machine(model="Other emulated device")) as other, connected(other):
        done = bench(tmp_path / "x.jsonl", "--artifact", tiny[0], *SHORT, "--reps", "1")
        assert other.processes() == []
    assert done.returncode == 0, done.stderr
    models = [one["device"]["model"] for one in samples(tmp_path / "x.jsonl")]
    assert sorted(models) == ["AdaKV Emulated device"] * 2 + ["AdaKV Other emulated device"] * 2


def test_a_hot_phone_is_waited_for() -> None:
    hardware = Hardware(hot_celsius=60.0, cool_celsius=25.0, cooling_seconds=3.0)
    with EmulatedDevice(hardware) as hot, connected(hot) as client:
        device = AdbDevice(client)
        waited, now = Cooling(target=35.0, limit=120.0, sleep=lambda seconds: time.sleep(seconds / 10)).wait(
            device.conditions
        )
    assert waited.reached
    assert waited.waited > 0
    assert now.celsius is not None
    assert now.celsius <= 35.0


def test_a_device_bundle_goes_over_by_hand(phone: EmulatedDevice, tiny: list[Path], tmp_path: Path) -> None:
    """README's three commands; and the harness finds the files and sends none of them again."""
    write_device_bundle(tiny[:1], tmp_path / "bundle")
    (identity,) = (path.name for path in (tmp_path / "bundle" / "artifacts").iterdir())

    def adb(*words: str) -> subprocess.CompletedProcess[str]:
        command = ["adb", "-s", phone.address, *words]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=120, check=False, stdin=subprocess.DEVNULL
        )

    assert adb("push", str(tmp_path / "bundle"), REMOTE).returncode == 0
    assert adb("shell", f"cd {REMOTE} && sha256sum -c SHA256SUMS").returncode == 0
    options = f"--artifact artifacts/{identity} --tokens 1,2,3 --max-new-tokens 4 --json"
    done = adb("shell", f"sh {REMOTE}/run.sh {options}")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["new_tokens"] == 4

    device = AdbDevice(connect(phone))
    device.push(device.bundle(tiny[:1]))
    assert device.sent == []
    device.clean()
