"""The command as a user runs it, with the real runner of this machine and small artifacts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from adakv_model.command_line import Exit
from adakv_model.runtime.artifact import Artifact
from device_tests.bench.cli import app
from device_tests.bench.rows import PROBE, SAMPLE, read
from device_tests.compare import app as compare_app

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folders(tiny_artifact: Callable[..., Artifact]) -> list[str]:
    return [str(tiny_artifact(quantize="none", policy=policy).folder) for policy in ("adaptive", "fp16")]


def bench(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "device_tests.bench", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)


def test_two_artifacts_on_the_host(folders: list[str], tmp_path: Path) -> None:
    out = tmp_path / "x.jsonl"
    options = ["--device", "host", "--artifact", folders[0], "--artifact", folders[1], "--json", str(out)]
    options += ["--pp", "16", "--tg", "8", "--depth", "0,64", "--reps", "3", "--threads", "1"]
    extra = ["--plot", str(tmp_path / "p.png"), "--trace", str(tmp_path / "t"), "--dashboard", str(tmp_path / "d")]
    done = bench(*options, *extra)
    assert done.returncode == 0, done.stderr
    assert "this machine, not a phone" in done.stdout
    assert "verdict" in done.stdout
    rows = read(out)
    probes = [r for r in rows if r["kind"] == PROBE]
    assert [r["agreement"]["mean_kl"] for r in probes] == pytest.approx([0, 0], abs=1e-6), "the same machine twice"
    samples = [r for r in rows if r["kind"] == SAMPLE]
    assert len(samples) == 2 * 4 * 3
    for one in samples:
        result, test = one["result"], one["test"]
        assert len(result["decode_ns"]) == test["tg"]
        assert sum(result["prefill_tokens"]) == test["pp"]
        assert result["cache"]["position"] == test["depth"] + test["pp"] + test["tg"]
        assert result["cache"]["bytes"] == one["artifact"]["cache_bytes"]
        assert all(ns > 0 for ns in result["decode_ns"] + result["prefill_ns"])
        memory = result["memory"]
        assert 0 < memory["loaded"]["rss"] <= memory["peak"] >= memory["end"]["rss"]
    assert json.loads((tmp_path / "t").read_text(encoding="utf-8"))["traceEvents"]
    assert json.loads((tmp_path / "d").read_text(encoding="utf-8"))
    assert (tmp_path / "p.png").stat().st_size > 10_000

    again = CliRunner().invoke(app, [*options, "--resume"])
    assert again.exit_code == 0, again.stderr
    assert "24 of 24 runs are in" in again.stderr
    assert len([r for r in read(out) if r["kind"] == SAMPLE]) == 24


def test_too_few_repetitions_for_a_verdict(folders: list[str], tmp_path: Path) -> None:
    """Said before anything runs; the same exit code as the comparison's, and the remedy works."""
    out = str(tmp_path / "x.jsonl")
    options = ["--device", "host", "--artifact", folders[0], "--artifact", folders[1], "--json", out]
    options += ["--pp", "", "--tg", "4", "--threads", "1"]
    few = CliRunner().invoke(app, [*options, "--reps", "1"])
    assert few.exit_code == Exit.CHECK
    first, *_, last = few.stderr.splitlines()
    assert first.startswith("note: a verdict needs 3 repetitions and --reps is 1")
    assert last.startswith("error: no two artifacts could be compared")
    assert "1 repetitions in common, of at least 3: run again with --reps 3 or more" in few.stdout
    assert CliRunner().invoke(compare_app, [out]).exit_code == Exit.CHECK
    enough = CliRunner().invoke(app, [*options, "--reps", "3", "--resume"])
    assert enough.exit_code == 0, enough.stderr
    assert "note:" not in enough.stderr
    assert CliRunner().invoke(compare_app, [out]).exit_code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "toaster"], "unknown device 'toaster'"),
        (["--tg", "8,x"], "--tg takes whole numbers separated by commas, such as 2,4, not '8,x'"),
        (["--threads", "0"], "--threads takes numbers of at least 1"),
        (["--depth", "300"], "needs 316 tokens and none-fp16 holds 256"),
        (["--pp", "0", "--tg", "0"], "nothing to measure"),
        (["--artifact", "SAME"], "an artifact is given twice"),
        (["--artifact", "/nowhere"], "no artifact at /nowhere"),
        (["--threads", "1,2", "--cpu-mask", "3"], "--cpu-mask goes with one number of --threads"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(
    folders: list[str], tmp_path: Path, options: list[str], message: str
) -> None:
    out = tmp_path / "x.jsonl"
    words = [folders[1] if word == "SAME" else word for word in options]
    device = [] if "--device" in words else ["--device", "host"]
    lengths = [] if "--pp" in words else ["--pp", "16", "--tg", "8"][: 2 if "--tg" in words else 4]
    done = CliRunner().invoke(app, [*device, *lengths, "--artifact", folders[1], *words, "--json", str(out)])
    assert done.exit_code == 2
    assert done.stdout == ""
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not out.exists()


def test_help_is_quick() -> None:
    """Without torch, which takes seconds."""
    code = "import sys, device_tests.bench.cli; sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'scipy')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
