"""What the transports to Apple devices share: Xcode's tools, the Swift runner, bundles of Core ML artifacts."""

from __future__ import annotations

import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adakv_model.errors import UserError
from adakv_model.runtime.artifact import Artifact
from adakv_model.runtime.manifest import MANIFEST, TOKENIZER
from device_tests.devices.bundle import Bundle, BundleFile
from device_tests.devices.device import Completed
from device_tests.devices.processes import last_line, run_command

PACKAGE = Path(__file__).parents[2] / "ios"
BUILD = Path(__file__).parents[2] / "build"
RUNNER = "adakv-run"
QUERY_TIMEOUT, BUILD_TIMEOUT = 120.0, 1800.0  # seconds
LEAST_IOS, INT8_IOS = 18, 26  # major versions: states; int8 inputs


def require_mac() -> None:
    """Raise UserError unless this is a Mac with Xcode."""
    if platform.system() != "Darwin":
        raise UserError(
            f"Core ML runs on Apple systems and this is {platform.system()}: use a Mac with Xcode 16 or later, or"
            " python -m device_tests.coreml.evaluator.generate, which evaluates the package anywhere"
        )
    if shutil.which("xcrun") is None:
        raise UserError("xcrun is missing: install Xcode 16 or later, open it once, and run xcode-select --install")


def xcrun(
    *words: str | Path, timeout: float = QUERY_TIMEOUT, env: Mapping[str, str] | None = None, remedy: str = ""
) -> Completed:
    """One of Xcode's tools, to its end. Raises UserError with its last line, and the remedy, where it fails."""
    done = run_command(["xcrun", *words], timeout, env=env)
    if done.status:
        tail = f": {remedy}" if remedy else ""
        raise UserError(f"{words[0]} {words[1]} failed ({last_line(done)}){tail}")
    return done


def xcrun_json(*words: str | Path, remedy: str = "") -> Any:
    """The JSON that a tool prints. Raises UserError."""
    done = xcrun(*words, remedy=remedy)
    try:
        return json.loads(done.stdout)
    except ValueError:
        raise UserError(
            f"{words[0]} {words[1]} printed no JSON: is Xcode 16 or later selected (xcode-select)?"
        ) from None


def build_runner(target: Sequence[str] = ()) -> Path:
    """adakv-run, up to date. target: further words of swift build. Raises UserError with the compiler's last line."""
    words = ["swift", "build", "--package-path", str(PACKAGE), "-c", "release", "--product", RUNNER, *target]
    xcrun(*words, timeout=BUILD_TIMEOUT, remedy=f"build {PACKAGE} by hand to see why")
    return Path(xcrun(*words, "--show-bin-path").stdout.strip()) / RUNNER


def core_ml_bundle(base: Bundle, artifacts: Sequence[Path]) -> Bundle:
    """The bundle with these artifacts: package, manifest and tokenizer. Raises UserError for one of another kind."""
    for folder in artifacts:
        artifact = Artifact(folder)
        if "core_ml_states" not in artifact.manifest or not artifact.program.is_dir():
            raise UserError(f"{folder} is no Core ML artifact: export one with python export.py --target ios")
        names = [name for name in (artifact.program.name, MANIFEST, TOKENIZER) if (folder / name).exists()]
        base = base.with_artifact(folder, names)
    return base


def runner_bundle(runner: Path, abi: str, artifacts: Sequence[Path]) -> Bundle:
    return core_ml_bundle(Bundle({RUNNER: BundleFile.of(runner, executable=True)}, (f"./{RUNNER}",), abi), artifacts)


def check_version(system: str, version: str, artifacts: Sequence[Path], int8: int = INT8_IOS) -> None:
    """Raises UserError where a system, such as "17.5", is older than the artifacts need."""
    needs_inputs = [folder for folder in artifacts if "core_ml_inputs" in Artifact(folder).manifest]
    major = int(version.partition(".")[0]) if version.partition(".")[0].isdecimal() else 0
    if needs_inputs and major < int8:
        raise UserError(f"{needs_inputs[0]} has int8 inputs and {system} has {version}: it needs {int8}")


def put(source: Path, target: Path) -> None:
    """source's content at target, without a copy where the file system allows: Core ML follows no symbolic links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copy2(source, target)


@contextmanager
def answer_file() -> Iterator[Path]:
    """A file for a tool that writes its answer instead of printing it; removed in the end."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "answer.json"
