"""The C++ runner on damaged programs, and at the end of the context."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from adakv_model.runtime.artifact import Artifact
from adakv_model.runtime.generate import generate
from device_tests.devices.host import build_runner
from device_tests.exporting import run_export
from scripts.make_tiny_artifact import CONTEXT, write_checkpoint

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def runner() -> Run:
    path = build_runner()
    return lambda *words: subprocess.run(
        [path, *map(str, words)], capture_output=True, text=True, check=False, timeout=300
    )


def ids(tokens: list[int]) -> str:
    return " ".join(map(str, tokens))


def test_a_program_cut_anywhere_is_one_line(
    runner: Run, tiny_artifact: Callable[..., Artifact], tmp_path: Path
) -> None:
    """Cut within the header, the tables or the weights: exit code 2 and one line, no crash and no answer."""
    whole = tiny_artifact(quantize="none").program.read_bytes()
    cut = tmp_path / "cut.pte"
    for share in (0, 0.0001, 0.01, 0.05, 0.2, 0.5, 0.9, 0.99, 0.9999):
        cut.write_bytes(whole[: int(share * len(whole))])
        done = runner("--model", cut, "--tokens", "1 2", "--max-new-tokens", "2")
        assert (done.returncode, done.stdout) == (2, ""), (share, done.stderr)
        assert done.stderr.startswith("error: "), share
        assert done.stderr.count("\n") == 1, share
        assert str(cut) in done.stderr


def test_zeros_in_a_program_are_no_crash(runner: Run, tiny_artifact: Callable[..., Artifact], tmp_path: Path) -> None:
    """Zeros in the tables are found. In weights they are numbers like any other: only a hash tells (android/README)."""
    whole = tiny_artifact(quantize="none").program.read_bytes()
    damaged = tmp_path / "damaged.pte"
    outcomes = []
    for part in range(40):
        start = part * len(whole) // 40
        damaged.write_bytes(whole[:start] + bytes(64) + whole[start + 64 :])
        done = runner("--model", damaged, "--tokens", "1 2 3", "--max-new-tokens", "3")
        assert done.returncode in (0, 2), (part, done.returncode, done.stderr)
        assert done.returncode == 0 or (done.stderr.startswith("error: ") and done.stderr.count("\n") == 1), part
        outcomes.append(done.returncode)
    assert outcomes[0] == 2, "the header"


def test_a_text_that_ends_with_the_context_ends_with_eos(runner: Run, tmp_path: Path) -> None:
    """The runner and the generator agree: a full context and an end token is `eos`, any other token `context`."""
    folder, prompt = tmp_path / "checkpoint", [(7 * i) % 320 for i in range(CONTEXT)]
    folder.mkdir()
    write_checkpoint(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    options = ("--checkpoint", str(folder), "--context", str(CONTEXT), "--prefill-chunk", "8", "--kv", "fp16")
    likeliest = None
    for reason, expected in (("context", 1), ("eos", 0)):
        out = tmp_path / reason
        config["eos_token_id"] = 2 if likeliest is None else likeliest
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        done = run_export(*options, "--quantize", "none", "--embedding", "none", "--out", str(out))
        assert done.returncode == 0, done.stderr
        words = ["--artifact", out, "--tokens", ids(prompt), "--max-new-tokens", "5", "--json"]
        result = json.loads(runner(*words).stdout)
        assert (result["finish_reason"], result["new_tokens"]) == (reason, expected)
        new, statistics = generate(Artifact(out), prompt, 5)
        assert (statistics.finish_reason, new) == (reason, result["token_ids"])
        likeliest = new[0] if new else None
        shutil.rmtree(out)
