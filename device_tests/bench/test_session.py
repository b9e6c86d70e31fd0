"""A session on a scripted device: resume, faults, probes. Only the runner's times are invented."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from adakv_model.errors import UserError
from adakv_model.runtime.artifact import Artifact
from device_tests.bench.plan import Test
from device_tests.bench.probe import Probe
from device_tests.bench.records import row
from device_tests.bench.rows import DEVICE, FAILURE, HEADER, PROBE, SAMPLE, ResultsFile, read
from device_tests.bench.session import Options, Session
from device_tests.bench.summary import failures, groups
from device_tests.bench.testing_device import ScriptedDevice, unplug
from device_tests.devices import Conditions, DeviceLost
from device_tests.parity.compare import Agreement

TESTS = [Test(0, 8, 0), Test(16, 0, 4)]
RUNS = 2 * len(TESTS) * 3  # artifacts, tests, repetitions


@pytest.fixture(scope="module")
def artifacts(tiny_artifact: Callable[..., Artifact]) -> dict[str, Artifact]:
    return {p: tiny_artifact(quantize="none", policy=p) for p in ("adaptive", "fp16")}


@pytest.fixture
def device() -> Iterator[ScriptedDevice]:
    device = ScriptedDevice()
    yield device
    device.clean()


def found(kl: float) -> Probe:
    return Probe(Agreement(0.1, kl, 1.0, 0.0), 0.01, 0.9)


def session(
    device: ScriptedDevice,
    artifacts: dict[str, Artifact],
    path: Path,
    *,
    resume: bool = False,
    tests: list[Test] = TESTS,
    kl: Callable[[str], float] = lambda name: 0.0,
    reps: int = 3,
) -> int:
    results = ResultsFile(path, row(HEADER, run="r", version="1", options={}), resume)
    names = {one.folder: name for name, one in artifacts.items()}
    tokens = {name: [number, *range(100)] for number, name in enumerate(artifacts)}
    options = Options(tests, reps=reps, threads=(2,), timeout=20)
    try:
        probe = lambda device, bundle, artifact, *rest: found(kl(names[artifact.folder]))  # noqa: E731
        return Session(device, artifacts, tokens, options, results, measure_probe=probe).run()
    finally:
        results.close()


def test_a_whole_run(device: ScriptedDevice, artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    assert session(device, artifacts, tmp_path / "x") == 0
    rows = read(tmp_path / "x")
    assert [r["kind"] for r in rows[:4]] == [HEADER, DEVICE, PROBE, PROBE]
    samples = [r for r in rows if r["kind"] == SAMPLE]
    assert len(samples) == len(device.calls) == RUNS
    assert device.cleaned == 1
    for one, other in zip(samples[::2], samples[1::2], strict=True):
        assert {one["artifact"]["name"], other["artifact"]["name"]} == set(artifacts), "they take turns"
        assert (one["test"], one["rep"]) == (other["test"], other["rep"])
    assert [len(group.samples) for group in groups(rows)] == [3] * 4


def test_a_lost_device_keeps_what_is_finished_and_resume_does_the_rest(
    device: ScriptedDevice, artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    device.before_run = unplug(after=5)
    with pytest.raises(DeviceLost, match=f"the cable was pulled: 5 of {RUNS} runs are kept, --resume does the rest"):
        session(device, artifacts, tmp_path / "x")
    assert device.cleaned == 1
    first = [r for r in read(tmp_path / "x") if r["kind"] == SAMPLE]
    assert len(first) == 5

    again = ScriptedDevice()
    assert session(again, artifacts, tmp_path / "x", resume=True) == 0
    assert len(again.calls) == RUNS - 5, "nothing finished is run again"
    samples = [r for r in read(tmp_path / "x") if r["kind"] == SAMPLE]
    assert samples[:5] == first
    keys = {(r["artifact"]["name"], str(r["test"]), r["rep"]) for r in samples}
    assert len(keys) == len(samples) == RUNS


def test_more_repetitions_may_be_added(device: ScriptedDevice, artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    session(device, artifacts, tmp_path / "x")
    session(device, artifacts, tmp_path / "x", resume=True, reps=4)
    assert len(device.calls) == RUNS * 4 // 3


def test_no_speed_without_correctness(device: ScriptedDevice, artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    assert session(device, artifacts, tmp_path / "x", kl=lambda name: 0.02 if name == "fp16" else 0.0) == 1
    rows = read(tmp_path / "x")
    assert {r["artifact"]["name"] for r in rows if r["kind"] == SAMPLE} == {"adaptive"}
    assert "fp16 on host fails parity: KL 0.02 (at most 0.01)" in failures(rows)[0]


def test_a_probe_that_fails_later_hides_earlier_speeds(
    device: ScriptedDevice, artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    session(device, artifacts, tmp_path / "x")
    session(device, artifacts, tmp_path / "x", resume=True, kl=lambda name: float("nan"))
    rows = read(tmp_path / "x")
    assert groups(rows) == []
    assert len(failures(rows)) == 2


def test_a_test_that_fails_is_a_line_and_the_others_go_on(
    device: ScriptedDevice, artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    failed = session(device, artifacts, tmp_path / "x", tests=[Test(0, 0, 4), Test(0, 0, 13)])
    rows = read(tmp_path / "x")
    assert failed == 6
    assert all(
        "status 1 (error: the program failed at position 13)" in r["error"] for r in rows if r["kind"] == FAILURE
    )
    assert len([r for r in rows if r["kind"] == SAMPLE]) == 6
    assert len(failures(rows)) == 6


def test_an_artifact_that_always_fails_is_given_up(
    device: ScriptedDevice, artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    session(device, artifacts, tmp_path / "x", tests=[Test(0, 0, 13), Test(16, 0, 13)])
    assert len(device.calls) == 4, "two runs of each artifact"


def test_a_run_goes_on_only_on_the_same_device(
    device: ScriptedDevice, artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    session(device, artifacts, tmp_path / "x")
    other = ScriptedDevice(conditions=Conditions("another", os_build="1"))
    with pytest.raises(UserError, match="was begun on a device at host with another model"):
        session(other, artifacts, tmp_path / "x", resume=True, reps=4)
    assert other.calls == []
