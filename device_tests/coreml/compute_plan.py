"""python -m device_tests.coreml.compute_plan: where Core ML means to run each operation, and what it costs there.

    python -m device_tests.coreml.compute_plan --artifact artifacts/smollm2-135m-instruct-ios
    python -m device_tests.coreml.compute_plan --artifact DIR --device ios --step-ms 9.5

Compiles the package with coremlcompiler, which checks it, and asks MLComputePlan on this Mac, or through coremltools'
model runner on a phone (ADAKV_TEAM signs it). Core ML tells shares of a call, no times: --step-ms, measured by
device_tests.bench, turns them into milliseconds. (coremltools' own per-operation times are the same product, and its
remote predictions know no states.) It has not run on a Mac yet.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from adakv_model.command_line import HELP_NAMES, command
from adakv_model.errors import UserError
from adakv_model.runtime.artifact import Artifact
from adakv_model.terminal import make_console
from device_tests.devices import apple, find_one, ios
from export.coreml.convert import DECODE, PREFILL, import_coremltools

UNITS = ("CPU_AND_NE", "CPU_AND_GPU", "CPU_ONLY", "ALL")  # coremltools' names
COMPILE_TIMEOUT = 600.0  # seconds
NOWHERE = "-"  # constants, reads of states: they are not executed

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = make_console(stderr=False)


@dataclass(frozen=True)
class Share:
    """Operations of one type on one compute device. weight: their part of a call, 0 to 1, as Core ML estimates it."""

    operation: str
    device: str
    count: int
    weight: float


def shares(operations: Iterable[Any], plan: Any) -> list[Share]:
    """Of an ML program's operations, costliest first. plan: a coremltools MLComputePlan."""
    counts: dict[tuple[str, str], int] = defaultdict(int)
    weights: dict[tuple[str, str], float] = defaultdict(float)
    for operation in operations:
        usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
        cost = plan.get_estimated_cost_for_mlprogram_operation(operation)
        name = operation.operator_name.rpartition(".")[2]  # ios18.slice_update
        key = (name, device_name(usage.preferred_compute_device) if usage else NOWHERE)
        counts[key] += 1
        weights[key] += cost.weight if cost else 0.0
    found = [Share(name, device, counts[name, device], weights[name, device]) for name, device in counts]
    return sorted(found, key=lambda share: (-share.weight, share.operation, share.device))


def device_name(device: Any) -> str:
    """MLNeuralEngineComputeDevice -> NeuralEngine."""
    return type(device).__name__.removeprefix("ML").removesuffix("ComputeDevice")


def table(found: list[Share], step_ms: float | None) -> Table:
    """For people; the last column needs the measured time of a call."""
    result = Table("operation", "device", "count", "share")
    if step_ms is not None:
        result.add_column("ms", justify="right")
    for share in found:
        times = [] if step_ms is None else [f"{share.weight * step_ms:.3f}"]
        result.add_row(share.operation, share.device, str(share.count), f"{share.weight:.1%}", *times)
    return result


def compile_package(package: Path, folder: Path) -> Path:
    """The .mlmodelc. Raises UserError with coremlcompiler's last line: the package is not what Core ML takes."""
    remedy = "the package is not what this Xcode's Core ML takes: is its --deployment-target newer?"
    apple.xcrun("coremlcompiler", "compile", package, folder, timeout=COMPILE_TIMEOUT, remedy=remedy)
    return folder / f"{package.stem}.mlmodelc"


def local_plan(compiled: Path, units: str) -> Any:
    ct = import_coremltools()
    return ct.models.compute_plan.MLComputePlan.load_from_path(str(compiled), compute_units=ct.ComputeUnit[units])


def remote_plan(package: Path, function: str, units: str, phone: ios.Phone) -> Any:
    """The plan of a phone, through coremltools' model runner, which Xcode builds and signs. Raises UserError."""
    ct = import_coremltools()
    from coremltools.models.ml_program.experimental.async_wrapper import MLModelAsyncWrapper
    from coremltools.models.ml_program.experimental.remote_device import AppSigningCredentials, Device

    team = os.environ.get("ADAKV_TEAM")
    if not team:
        raise UserError("coremltools' model runner must be signed: set ADAKV_TEAM to your Apple developer team's id")
    device = next((one for one in Device.get_devices() if one.identifier == phone.identifier), None)
    if device is None:
        raise UserError(f"coremltools does not see {phone.name}: {ios.CONNECT}")

    async def retrieve() -> Any:
        ready = await device.prepare_for_model_debugging(AppSigningCredentials(development_team=team))
        model = MLModelAsyncWrapper.from_spec_or_path(
            str(package), "", compute_units=ct.ComputeUnit[units], function_name=function, device=ready
        )
        await model.load()
        try:
            return await model.retrieve_compute_plan()
        finally:
            await model.unload()

    return asyncio.run(retrieve())


@app.command(context_settings=HELP_NAMES)
@command
def main(
    artifact: Annotated[Path, typer.Option(help="Folder written by adakv export --target ios.")],
    device: Annotated[str, typer.Option(help="mac, or ios[:UDID].")] = "mac",
    function: Annotated[str, typer.Option(help=f"{DECODE} or {PREFILL}.")] = DECODE,
    units: Annotated[str, typer.Option(help=f"{', '.join(UNITS)}.")] = UNITS[0],
    step_ms: Annotated[float | None, typer.Option(min=0.0, help="Measured time of a call.")] = None,
) -> None:
    """Print what each kind of operation costs, and where it runs."""
    apple.require_mac()
    if function not in (DECODE, PREFILL) or units not in UNITS or device.partition(":")[0] not in ("mac", "ios"):
        raise UserError("--device is mac or ios, --function decode or prefill, --units as --help says")
    package = Artifact(artifact).program
    with tempfile.TemporaryDirectory() as folder:
        compiled = compile_package(package, Path(folder))
        chosen = find_one(device)
        if isinstance(chosen, ios.IosDevice):
            plan = remote_plan(package, function, units, chosen.phone)
        else:
            plan = local_plan(compiled, units)
        operations = plan.model_structure.program.functions[function].block.operations
        console.print(table(shares(operations, plan), step_ms))


if __name__ == "__main__":
    app()
