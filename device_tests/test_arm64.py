"""The C++ runner on arm64, under emulation, against the same runner on this machine and against Python.

Builds into build/ (kept between runs). ADAKV_SKIP_ARM64=1 leaves the emulated part out; without it a missing cross
compiler or emulator is a failure, not a skip. Emulation says nothing about a phone's speed.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from adakv_model.runtime.artifact import Artifact
from adakv_model.runtime.generate import generate
from device_tests.devices.emulated.testing import require_tools
from device_tests.devices.host import build_runner
from device_tests.devices.local import EMULATOR
from device_tests.devices.qemu import CPU
from export.device_bundle import LOADER_COMMAND, RUNNER, loader_package
from scripts.make_tiny_artifact import CONTEXT

EMULATED = [EMULATOR, "-cpu", CPU]
SYSROOT = ["-L", "/usr/aarch64-linux-gnu"]
PROMPT = [(37 * i + 11) % 320 for i in range(100)]

Runner = Callable[..., subprocess.CompletedProcess]


def run(*command: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess:
    return subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def host_runner() -> Runner:
    path = build_runner()
    return lambda *options: run(path, *options)


@pytest.fixture(scope="session")
def arm64_package() -> Path:
    """The folder that would go onto a device."""
    require_tools()
    return loader_package()


@pytest.fixture(scope="session")
def arm64_runner(arm64_package: Path) -> Runner:
    return lambda *options: run(*EMULATED, *SYSROOT, arm64_package / RUNNER, *options)


@pytest.fixture(scope="session", params=["none", "8da4w-asym"])
def artifact(request: pytest.FixtureRequest, tiny_artifact: Callable[..., Artifact]) -> Artifact:
    return tiny_artifact(quantize=request.param)


def ask(runner: Runner, artifact: Artifact, prompt: list[int], new: int, *options: str) -> dict:
    tokens = ",".join(map(str, prompt))
    done = runner(
        "--model", str(artifact.program), "--tokens", tokens, "--max-new-tokens", str(new), "--json", *options
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_host_runner_answers_as_python_does(host_runner: Runner, artifact: Artifact) -> None:
    expected, statistics = generate(artifact, PROMPT, 60)
    got = ask(host_runner, artifact, PROMPT, 60)
    assert got["token_ids"] == expected
    assert got["tokens_by_tier"] == list(statistics.tokens_by_tier.values())
    assert got["cache_bytes"] == artifact.plan.bytes_allocated == statistics.bytes_allocated
    assert got["finish_reason"] == statistics.finish_reason


def test_arm64_runner_answers_as_the_host_does(arm64_runner: Runner, host_runner: Runner, artifact: Artifact) -> None:
    # Rounding of int8 activations makes a last digit a visible difference, which a long answer of random weights
    # amplifies and which can move a token across a tier's threshold: only float weights are comparable throughout.
    exact = artifact.manifest["quantize"] == "none"
    expected, got = (ask(r, artifact, PROMPT, 60 if exact else 3) for r in (host_runner, arm64_runner))
    assert got["token_ids"] == expected["token_ids"]
    assert got["finish_reason"] == expected["finish_reason"]
    assert got["cache_bytes"] == expected["cache_bytes"]
    assert sum(got["tokens_by_tier"]) == sum(expected["tokens_by_tier"])
    if exact:
        assert got["tokens_by_tier"] == expected["tokens_by_tier"]


def test_package_starts_with_its_own_loader(arm64_package: Path, arm64_runner: Runner, artifact: Artifact) -> None:
    """As on a device without these libraries: no sysroot, only what is in the folder."""

    def alone(*options: str) -> subprocess.CompletedProcess:
        return run(*EMULATED, *LOADER_COMMAND, *options, cwd=arm64_package)

    got, expected = (ask(r, artifact, PROMPT, 3) for r in (alone, arm64_runner))
    assert got["token_ids"] == expected["token_ids"]


def test_chunks_and_the_end_of_the_context(host_runner: Runner, artifact: Artifact) -> None:
    if artifact.manifest["quantize"] == "none":
        single, chunked = (ask(host_runner, artifact, PROMPT, 20, "--chunk", n) for n in ("1", "8"))
        assert single["token_ids"] == chunked["token_ids"]
        assert single["tokens_by_tier"] == chunked["tokens_by_tier"]
    full = ask(host_runner, artifact, [7] * CONTEXT, 20, "--ignore-eos")
    assert (full["finish_reason"], full["new_tokens"]) == ("context", 1)
    assert sum(full["tokens_by_tier"]) == artifact.plan.stored_in_tiers


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "/nowhere.pte", "--tokens", "1"], "cannot read /nowhere.pte"),
        (["--model", __file__, "--tokens", "1"], "is not an ExecuTorch program this runtime can read"),
        (["--tokens", "1"], "--model is missing"),
        (["--model", "MODEL"], "the prompt is empty"),
        (["--model", "MODEL", "--tokens", "1,x"], "--tokens takes an integer of at least 0, not 'x'"),
        (["--model", "MODEL", "--tokens", "320"], "token id 320 is outside the vocabulary of 320"),
        (["--model", "MODEL", "--tokens", "1 " * (CONTEXT + 1)], f"257 tokens and the program holds {CONTEXT}"),
        (["--model", "MODEL", "--tokens", "1", "--chunk", "9"], "--chunk is at most 8 for this program"),
        (["--model", "MODEL", "--tokens", "1", "--threads", "100000"], "--threads 100000 is more than the "),
        (["--model", "MODEL", "--tokens", "1", "--frobnicate", "9"], "unknown option --frobnicate"),
    ],
)
def test_errors_are_one_line(host_runner: Runner, artifact: Artifact, options: list[str], message: str) -> None:
    done = host_runner(*(str(artifact.program) if o == "MODEL" else o for o in options))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("keep", [0, 16, 1000])
def test_a_zeroed_program_is_one_line(host_runner: Runner, artifact: Artifact, tmp_path: Path, keep: int) -> None:
    """All but the first `keep` bytes are zeros: a header that promises tables, and none there."""
    program = tmp_path / "model.pte"
    whole = artifact.program.read_bytes()
    program.write_bytes(whole[:keep] + bytes(len(whole) - keep))
    done = host_runner("--model", str(program), "--tokens", "1")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "is not an ExecuTorch program this runtime can read" in done.stderr
