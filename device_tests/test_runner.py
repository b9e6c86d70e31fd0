"""The C++ runner's measuring modes on this machine (docs/bench-schema.md), and what it keeps in memory."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adakv_model.runtime.artifact import Artifact
from device_tests.devices.host import build_runner
from device_tests.exporting import export_once

CONTEXT = 256  # of the small artifact
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def runner() -> Run:
    path = build_runner()
    return lambda *words: subprocess.run(
        [path, *map(str, words)], capture_output=True, text=True, check=False, timeout=600
    )


@pytest.fixture(scope="module")
def artifact(tiny_artifact: Callable[..., Artifact]) -> Artifact:
    return tiny_artifact(quantize="none")


def result_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_every_step_is_timed_and_in_order(runner: Run, artifact: Artifact) -> None:
    words = ["--artifact", artifact.folder, "--tokens", "5 6 7", "--bench", "--threads", "1"]
    result = result_of(runner(*words, "--depth", "20", "--pp", "19", "--tg", "5"))
    assert result["prefill_tokens"] == [4, 8, 7], "chunks of 8 that cross no multiple of 8"
    assert (len(result["prefill_ns"]), len(result["decode_ns"])) == (3, 5)
    assert result["first_token_ns"] == sum(result["prefill_ns"])
    assert result["cache"]["position"] == 44
    assert (result["finish_reason"], result["runner"]["threads"]) == ("done", 1)
    started = result["started_ns"]
    assert started["load"] + result["load_ns"] <= started["warm_up"]
    assert started["warm_up"] + result["cold_step_ns"] <= started["fill"]
    assert started["fill"] + result["fill_ns"] <= started["prefill"]
    assert started["prefill"] + result["first_token_ns"] <= started["decode"]


def test_the_end_of_the_context_is_a_reason(runner: Run, artifact: Artifact) -> None:
    words = ["--artifact", artifact.folder, "--tokens", "5", "--bench", "--depth", CONTEXT - 3]
    result = result_of(runner(*words, "--tg", "9"))
    assert (result["finish_reason"], len(result["decode_ns"])) == ("context", 3)


def test_warm_up_leaves_no_trace_in_the_cache(runner: Run, artifact: Artifact, tmp_path: Path) -> None:
    """A benchmark's cache is that of the same tokens alone."""
    tokens = [(31 * i) % 320 for i in range(60)]
    text = " ".join(map(str, tokens))
    bench = result_of(runner("--artifact", artifact.folder, "--tokens", text, "--bench", "--depth", "40", "--tg", "20"))
    force = result_of(runner("--artifact", artifact.folder, "--tokens", text, "--force", "20"))
    assert bench["cache"] == force["cache"]


def test_forced_logits_are_those_of_each_prefix(runner: Run, artifact: Artifact, tmp_path: Path) -> None:
    tokens = [(31 * i) % 320 for i in range(40)]
    rows = {}
    for forced in (0, 4):
        path = tmp_path / f"logits-{forced}"
        words = ["--artifact", artifact.folder, "--tokens", " ".join(map(str, tokens)), "--force", forced]
        result = result_of(runner(*words, "--logits", path))
        assert result["logits"] == {"steps": forced + 1, "vocabulary": 320}
        rows[forced] = np.fromfile(path, "<f4").reshape(forced + 1, 320)
    assert np.array_equal(rows[0][0], rows[4][-1]), "prefill and single steps end in the same logits"
    assert len(np.unique(rows[4], axis=0)) == 5


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs Linux")
def test_a_mask_chooses_the_cores(runner: Run, artifact: Artifact) -> None:
    core = max(os.sched_getaffinity(0))
    words = ["--artifact", artifact.folder, "--tokens", "5", "--bench", "--tg", "2", "--threads", "1"]
    result = result_of(runner(*words, "--cpu-mask", f"{1 << core:x}"))
    assert result["clocks_khz"]["cores"] == [core]
    assert result["runner"]["cpu_mask"] == f"{1 << core:x}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bench"], "--bench needs --pp or --tg"),
        (["--bench", "--tg", "1", "--depth", CONTEXT], f"--depth {CONTEXT} fills the context of {CONTEXT}"),
        (["--bench", "--tg", "-1"], "--tg takes an integer of at least 0, not '-1'"),
        (["--bench", "--tg", "1", "--cpu-mask", "x"], "--cpu-mask takes a hexadecimal number above 0, not 'x'"),
        (["--bench", "--tg", "1", "--cpu-mask", "8000000000000000"], "--cpu-mask 8000000000000000 cannot be used here"),
        (["--force", "1"], "--force takes fewer tokens than there are (1)"),
        (["--force", "0", "--logits", "/nowhere/x"], "cannot write /nowhere/x"),
        (["--force", "0", "--states", "/nowhere/x"], "cannot make the folder /nowhere/x"),
    ],
)
def test_errors_are_one_line(runner: Run, artifact: Artifact, options: list, message: str) -> None:
    done = runner("--artifact", artifact.folder, "--tokens", "5", *options)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_memory_is_weights_and_cache_and_little_else(
    runner: Run, tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> None:
    """The real model with 4,096 tokens in the cache: the program is mapped, so that its pages are the only copy of the
    weights, and the cache is allocated once. The rest is the runtime's code and the activations of one chunk."""
    given = pytestconfig.getoption("--artifact")
    artifact = Artifact(Path(given) if given else export_once(tmp_path_factory, ("--context", "4096")))
    words = [
        "--artifact",
        artifact.folder,
        "--tokens",
        "504 253 338 1 7 2 99",
        "--bench",
        "--depth",
        "4064",
        "--tg",
        "32",
    ]
    result = result_of(runner(*words))
    weights, cache = artifact.program.stat().st_size, artifact.plan.bytes_allocated
    rest = result["memory"]["peak"] - weights - cache
    assert result["cache"]["position"] == 4096
    print(f"peak {result['memory']['peak'] / 1e6:.1f} MB = {weights / 1e6:.1f} + {cache / 1e6:.1f} + {rest / 1e6:.1f}")
    assert rest <= 20e6
