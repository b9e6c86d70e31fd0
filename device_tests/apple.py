"""python -m device_tests.apple: parity and latency of a Core ML artifact on Apple hardware, driven from a Mac.

Runs ios/'s adakv-run over the same token ids as the evaluator, on the Mac itself or in a booted iOS simulator, and
compares tokens and logits. Written for Xcode 16; it has not run on Apple hardware yet.
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from adakv_model.errors import UserError
from adakv_model.runtime.artifact import Artifact
from adakv_model.runtime.inputs import check_prompt, read_prompt
from adakv_model.terminal import make_console, print_error
from device_tests.coreml.run import CoreMLModel
from device_tests.parity.compare import Agreement

PACKAGE = Path(__file__).parents[1] / "ios"
RUNNER = "adakv-run"
UNITS = ("cpuAndNeuralEngine", "cpuAndGPU", "cpuOnly", "all")
SIMULATOR = ("--triple", "arm64-apple-ios18.0-simulator")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = make_console()


@dataclass
class AppleRun:
    """What adakv-run reported: new tokens, its summary, logits float32 [prompt + new - 1, V]."""

    tokens: list[int]
    summary: dict
    logits: np.ndarray


def check_host() -> None:
    """Raise UserError unless this is a Mac with Xcode's tools."""
    if platform.system() != "Darwin":
        raise UserError(
            f"Core ML runs on Apple systems and this is {platform.system()}: use a Mac with Xcode 16, or"
            " python -m device_tests.coreml.evaluator.generate, which evaluates the package anywhere"
        )
    if shutil.which("xcrun") is None:
        raise UserError("xcrun is missing: install Xcode 16 and run xcode-select --install")


def build_runner(simulator: bool) -> Path:
    """Build adakv-run; the path of the binary. Raises UserError with the compiler's last line."""
    command = ["xcrun"]
    options: list[str] = []
    if simulator:
        sdk = _output(["xcrun", "--sdk", "iphonesimulator", "--show-sdk-path"])
        options = [*SIMULATOR, "--sdk", sdk]
    build = [*command, "swift", "build", "--package-path", str(PACKAGE), "-c", "release", "--product", RUNNER, *options]
    _output(build)
    return Path(_output([*build, "--show-bin-path"])) / RUNNER


def run_on_apple(
    runner: Path, artifact: Artifact, prompt: list[int], new_tokens: int, units: str, simulator: bool
) -> AppleRun:
    """Feed token ids to the runner and collect what it says. Raises UserError with its error line."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "logits.bin"
        command = [str(runner), "--artifact", str(artifact.folder.resolve()), "--units", units, "--logits", str(path)]
        command += ["--max-new-tokens", str(new_tokens)]
        if simulator:
            command = ["xcrun", "simctl", "spawn", "booted", *command]
        lines = _output(command, json.dumps(prompt))
        tokens, summary = parse_lines(lines)
        rows = np.fromfile(path, dtype="<f2").reshape(-1, artifact.plan.vocab_size)
    return AppleRun(tokens, summary, rows.astype(np.float32))


def parse_lines(lines: str) -> tuple[list[int], dict]:
    """Token ids and summary of adakv-run's output. Raises UserError if the summary is missing."""
    objects = [json.loads(line) for line in lines.splitlines() if line.startswith("{")]
    summary = next((o["summary"] for o in objects if "summary" in o), None)
    if summary is None:
        raise UserError(f"{RUNNER} ended without a summary: run it by hand to see why")
    return [o["token"] for o in objects if "token" in o], summary


def _output(command: list[str], stdin: str | None = None) -> str:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise UserError(f"{command[0]} failed ({lines[-1] if lines else f'status {done.returncode}'})")
    return done.stdout.strip()


def compare(artifact: Artifact, prompt: list[int], run: AppleRun) -> dict:
    """The evaluator over the same tokens, teacher-forced: agreement of logits and of the greedy choice."""
    model = CoreMLModel(artifact, "fp16")
    expected = model.prefill([*prompt, *run.tokens][: run.logits.shape[0]])
    agreement = Agreement.between(torch.from_numpy(expected), torch.from_numpy(run.logits))
    return {
        "agreement": asdict(agreement),
        "tier_counts": run.summary["tier_counts"],
        "tier_counts_evaluated": model.tier_counts(),
    }


@app.command(context_settings={"help_option_names": ["-h", "--help"]})
def main(
    artifact: Annotated[Path, typer.Option(help="Folder written by export.py --target ios.")],
    prompt: Annotated[str, typer.Option(help="Text to continue.")] = "The sky is blue because",
    new_tokens: Annotated[int, typer.Option(min=2, help="Tokens to generate.")] = 128,
    units: Annotated[str, typer.Option(help=f"Compute units: {', '.join(UNITS)}.")] = UNITS[0],
    simulator: Annotated[
        bool, typer.Option("--simulator", help="In the booted iOS simulator (no Neural Engine).")
    ] = False,
    parity: Annotated[bool, typer.Option("--parity/--no-parity", help="Compare with the evaluator (slow).")] = True,
) -> None:
    """Run a Core ML artifact on this Mac; prints one JSON object with latency and parity."""
    try:
        check_host()
        if units not in UNITS:
            raise UserError(f"unknown --units {units!r}: one of {', '.join(UNITS)}")
        opened = Artifact(artifact)
        ids = opened.codec.encode(read_prompt(prompt), add_special_tokens=True)
        check_prompt(ids, opened.plan.context, opened.vocabulary)
        runner = build_runner(simulator)
        result = run_on_apple(runner, opened, ids, new_tokens, units, simulator)
        report = {"latency": result.summary, "text": opened.codec.decode(result.tokens)}
        if parity:
            report |= compare(opened, ids, result)
    except UserError as error:
        print_error(console, error)
        raise typer.Exit(2) from None
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    app()
