"""The compute plan's report over a plan made here: Core ML's own needs a Mac."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from adakv_model.errors import UserError
from adakv_model.terminal import make_console
from device_tests.coreml.compute_plan import Share, app, compile_package, shares, table


class MLNeuralEngineComputeDevice:
    pass


class MLCPUComputeDevice:
    pass


@dataclass
class Operation:
    operator_name: str


@dataclass
class Usage:
    preferred_compute_device: object


@dataclass
class Cost:
    weight: float


class Plan:
    """Constants cost nothing; slices run on the CPU."""

    def get_compute_device_usage_for_mlprogram_operation(self, operation: Operation) -> Usage | None:
        if "const" in operation.operator_name:
            return None
        return Usage(MLCPUComputeDevice() if "slice" in operation.operator_name else MLNeuralEngineComputeDevice())

    def get_estimated_cost_for_mlprogram_operation(self, operation: Operation) -> Cost | None:
        return None if "const" in operation.operator_name else Cost(0.25)


OPERATIONS = [Operation(f"ios18.{name}") for name in ("const", "linear", "slice_update", "linear", "linear")]


def test_shares_by_operation_and_device() -> None:
    assert shares(OPERATIONS, Plan()) == [
        Share("linear", "NeuralEngine", 3, 0.75),
        Share("slice_update", "CPU", 1, 0.25),
        Share("const", "-", 1, 0.0),
    ]


def test_a_measured_step_gives_milliseconds() -> None:
    console = make_console(stderr=False, width=80)
    with console.capture() as captured:
        console.print(table(shares(OPERATIONS, Plan()), 8.0))
    row = next(line for line in captured.get().splitlines() if "linear" in line)
    assert "75.0%" in row
    assert "6.000" in row


@pytest.mark.skipif(platform.system() == "Darwin", reason="this is a Mac: it would run")
def test_off_a_mac_it_is_one_clear_line() -> None:
    result = CliRunner().invoke(app, ["--artifact", "anywhere"])
    assert result.exit_code == 2
    assert "use a Mac with Xcode 16" in result.stderr


def test_a_package_that_the_compiler_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = tmp_path / "xcrun"
    binary.write_text('#!/bin/sh\necho "$*" > "$0.log"\necho "error: unknown opset" >&2\nexit 1\n', encoding="utf-8")
    binary.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(UserError, match=r"coremlcompiler compile failed \(error: unknown opset\): the package is not"):
        compile_package(Path("Small.mlpackage"), tmp_path)
    assert (tmp_path / "xcrun.log").read_text(
        encoding="utf-8"
    ) == f"coremlcompiler compile Small.mlpackage {tmp_path}\n"
