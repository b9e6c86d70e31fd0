"""Verdicts, and when there is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from adakv_model.command_line import Exit
from device_tests.bench.comparing import compare
from device_tests.bench.plan import Test
from device_tests.bench.records import row
from device_tests.bench.rows import HEADER, ResultsFile, Row
from device_tests.bench.summary import Group, groups
from device_tests.bench.testing_device import probe_row, sample
from device_tests.compare import app


def group(artifact: str, ms: float, reps: int = 5, **changes: Any) -> Group:
    """Repetitions with a drift that all artifacts share, and noise of their own."""
    noise = [0.0, 0.02, -0.01, 0.01, -0.02] * 3
    return groups([sample(artifact, ms * (1 + 0.2 * rep) * (1 + noise[rep]), rep, **changes) for rep in range(reps)])[0]


def test_a_difference_is_seen_through_drift() -> None:
    found = compare(group("a", 0.9), group("b", 1.0))
    assert found.verdict == "faster"
    assert found.ratio is not None
    assert found.ratio.value == pytest.approx(0.9)
    assert compare(group("b", 1.0), group("a", 0.9)).verdict == "slower"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"device": {"model": "Other phone"}}, "model differs (Phone, Other phone)"),
        ({"device": {"emulated": True}}, "one is a phone's and the other is not"),
        ({"device": {"os_build": "16"}}, "os build differs"),
        ({"device": {"governors": ["performance"]}}, "governors differs (schedutil, performance)"),
        ({"threads": 4}, "threads differs (2, 4)"),
        ({"cpu_mask": "f0"}, "cpu mask differs (None, f0)"),
        ({"run": "other"}, "different runs"),
        ({"test": Test(0, 0, 8)}, "test differs (pp0 tg4 depth0, pp0 tg8 depth0)"),
        ({"reps": 2}, "2 repetitions in common, of at least 3: run again with --reps 3 or more (--resume"),
        ({"cooldown": {"reached": False}}, "b was still hot in 5 of 5 samples"),
    ],
)
def test_what_is_not_comparable_says_why(changes: dict[str, Any], reason: str) -> None:
    found = compare(group("a", 0.9), group("b", 1.0, **changes))
    assert found.verdict == "not comparable"
    assert found.ratio is None
    assert any(reason in text for text in found.reasons), found.reasons


def test_another_instruction_set_is_not_comparable() -> None:
    other = group("b", 1.0)
    for one in other.samples:
        one["result"]["runner"]["isa"] = "i8mm"
    assert "instruction set differs (dotprod, i8mm)" in compare(group("a", 1.0), other).reasons


def test_across_runs_is_looser_and_says_so() -> None:
    a, b = group("a", 0.9), group("b", 1.0, run="other")
    found = compare(a, b, across_runs=True)
    assert found.verdict == "no difference shown", "drift is no longer shared"
    assert found.notes == ["different runs, not taken in turn"]
    assert compare(group("a", 0.3), b, across_runs=True).verdict == "faster"


def test_throttling_is_noted() -> None:
    assert compare(group("a", 0.9, throttled=True), group("b", 1.0)).notes == ["clocks dropped during 5 and 0 samples"]


def results(path: Path, rows: list[Row]) -> str:
    file = ResultsFile(path, row(HEADER, run="r", version="1", options={}), resume=False)
    for one in rows:
        file.append(one)
    file.close()
    return str(path)


def both(test: Test | None = None, **changes: Any) -> list[Row]:
    return [one for name, ms in (("mine", 0.9), ("fp16", 1.0)) for one in group(name, ms, test=test, **changes).samples]


def test_one_file_compares_its_artifacts(tmp_path: Path) -> None:
    path = results(tmp_path / "x", both() + both(Test(512, 0, 4)))
    done = CliRunner().invoke(app, [path, "--json"])
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert [(one["a"], one["b"], one["verdict"]) for one in found] == [("mine", "fp16", "faster")] * 2
    turned = json.loads(CliRunner().invoke(app, [path, "--baseline", "mine", "--json"]).stdout)
    assert [(one["a"], one["b"], one["verdict"]) for one in turned] == [("fp16", "mine", "slower")] * 2
    text = CliRunner().invoke(app, [path]).stdout
    assert "faster" in text
    assert "no phone" not in text


def test_two_files_of_different_runs(tmp_path: Path) -> None:
    a, b = results(tmp_path / "a", both()), results(tmp_path / "b", both(run="other"))
    done = CliRunner().invoke(app, [a, b])
    assert done.exit_code == Exit.CHECK
    assert "not comparable" in done.stdout
    assert CliRunner().invoke(app, [a, b, "--across-runs", "--json"]).exit_code == 0


def test_a_log_of_80_columns_holds_the_verdicts_and_their_reasons(tmp_path: Path) -> None:
    path = results(tmp_path / "x", both() + both(Test(512, 0, 4), cooldown={"reached": False}))
    lines = CliRunner().invoke(app, [path], env={"COLUMNS": "80"}).stdout.splitlines()
    table = [line.rstrip() for line in lines if line.startswith(("tg4", "["))]
    assert any("faster" in line for line in table)
    assert any("not comparable" in line for line in table)
    assert max(map(len, table)) <= 80
    assert "tg4 @ d512: mine was still hot in 5 of 5 samples" in lines
    assert "adb:1, 2 threads" in lines


def test_what_failed_parity_has_no_verdict(tmp_path: Path) -> None:
    path = results(tmp_path / "x", [*both(), probe_row("mine", False)])
    done = CliRunner().invoke(app, [path])
    assert done.exit_code == 2
    assert "share no test of two artifacts" in done.stderr
    assert CliRunner().invoke(app, [path, "--baseline", "mine"]).exit_code == 2
