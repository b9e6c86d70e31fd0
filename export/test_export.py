"""export.py as a user meets it: a small real export, and bad input."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from adakv_model.checkpoints.testing_checkpoints import SMALL, write_folder
from adakv_model.checkpoints.weights import draw_weights
from adakv_model.errors import UserError
from adakv_model.features import FEATURE_SETS
from adakv_model.runtime.artifact import Artifact
from adakv_model.runtime.generate import prefill
from device_tests.exporting import ROOT, run_export
from export.android import export_android
from export.folder import atomic_folder
from export.options import ExportOptions


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint in Hugging Face form."""
    path = tmp_path_factory.mktemp("tiny")
    write_folder(path, draw_weights(SMALL, 0))
    return path


@pytest.fixture(scope="module")
def tiny(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Its artifact and the finished command."""
    out = tmp_path_factory.mktemp("artifacts") / "tiny"
    options = ("--checkpoint", str(folder), "--context", "64", "--window", "8", "--kv-bits", "10", "--out", str(out))
    return out, run_export(*options, "--json")


def test_artifact_is_complete_and_runs(tiny: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    out, done = tiny
    assert done.returncode == 0, done.stderr
    manifest = json.loads(done.stdout)
    assert manifest == json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert {"model.pte", "libadakv_ops.so"} <= manifest["files"].keys()
    assert manifest["kv_cache"]["bits_per_value"] <= 10
    assert manifest["kv_cache"]["bytes_allocated"] >= sum(manifest["kv_cache"]["bytes"].values())
    assert (manifest["quantize"], manifest["embedding"]) == ("8da4w-asym", "table")
    assert 4 < manifest["weights"]["bits_per_weight"] < 8
    assert manifest["files"]["model.pte"]["bytes"] > manifest["weights"]["weight_bytes"]
    assert manifest["command"][1:3] == ["--checkpoint", manifest["model"]["source"]["path"]]
    assert manifest["controller"]["feature_set"] == "fast"
    assert not any("observe" in name for name in manifest["undelegated_operators"])
    assert "last_logits" not in manifest["kv_cache"]["bytes"]
    assert manifest["methods"]["forward"]["outputs"]["logits"][1] == [1, 1, SMALL.vocab_size]
    assert [p.name for p in out.parent.iterdir()] == [out.name], "nothing temporary is left"
    artifact = Artifact(out)
    model = artifact.load()
    logits = prefill(model, list(range(1, 64)))
    assert logits.shape == (SMALL.vocab_size,)
    assert torch.isfinite(logits).all()
    assert sum(model.tier_counts()) == artifact.plan.left(62) - 1 == 40


def test_the_last_logits_are_those_of_all(tiny: tuple[Path, subprocess.CompletedProcess[str]], folder: Path) -> None:
    """Stepwise, and every set of features in a program: those with predictions return all logits, asked or not."""
    small = ("--checkpoint", str(folder), "--context", "64", "--window", "8", "--kv-bits", "10")
    last = Artifact(tiny[0]).load()
    with pytest.raises(UserError, match="returns the logits of a step's last token only: export with --logits all"):
        last.prefill([1, 2, 3])
    for features in FEATURE_SETS:
        out = tiny[0].parent.parent / "sets" / features
        wanted = "all" if features == "fast" else "last"
        done = run_export(*small, "--features", features, "--logits", wanted, "--out", str(out))
        assert done.returncode == 0, done.stderr
        assert ("needs the prediction of every token: exported with --logits all" in done.stderr) == (wanted == "last")
        artifact = Artifact(out)
        model = artifact.load()
        assert artifact.all_logits
        assert model.plan.observes == (features != "fast")
        expected = model.prefill(list(range(1, 64)))
        assert expected.shape == (63, SMALL.vocab_size)
        if features == "fast":
            last.reset()
            start = 0
            for count in last.plan.chunks(0, 63):
                row = last.step(list(range(1 + start, 1 + start + count)))
                start += count
                assert torch.equal(row, expected[start - 1 : start])


def test_an_existing_artifact_is_replaced_only_on_success(
    tiny: tuple[Path, subprocess.CompletedProcess[str]], folder: Path
) -> None:
    out, _ = tiny
    before = (out / "manifest.json").read_text(encoding="utf-8")
    failed = run_export("--checkpoint", str(folder), "--context", "64", "--kv-bits", "1", "--out", str(out))
    assert failed.returncode == 2
    assert (out / "manifest.json").read_text(encoding="utf-8") == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--kv", "static-5"), "unknown --kv 'static-5': one of adaptive"),
        (("--kv-bits", "1.5"), "--kv-bits 1.5 is impossible at context 2048"),
        (("--kv-bits", "20"), "choose between"),
        (("--kv", "static-4", "--kv-bits", "4"), "--kv static-4 has a fixed width"),
        (("--features", "most"), "unknown --features 'most': one of fast, paper, all"),
        (("--logits", "some"), "unknown --logits 'some': one of last, all"),
        (("--kv", "static-4", "--features", "all"), "--kv static-4 decides nothing: drop it"),
        (("--target", "ios", "--logits", "last"), "drop --logits and --features"),
        (("--context", "17"), "--context 17 must be at least 21 with --window 16"),
        (("--context", "100000"), "more than the 8192 positions"),
        (("--quantize", "int3"), "unknown --quantize 'int3': one of 8da4w-asym, 8da8w"),
        (("--embedding", "7"), "unknown --embedding '7'"),
        (("--target", "web"), "unknown --target 'web'"),
        (("--model", "smollm3"), "smollm"),
        (("--checkpoint", "/nonexistent/folder"), "does not exist"),
        (("--tables", "/nonexistent/tables"), "make them with adakv calibrate"),
    ],
)
def test_bad_options_give_one_line_and_no_artifact(options: tuple[str, ...], message: str, tmp_path: Path) -> None:
    done = run_export(*options, "--out", str(tmp_path / "out"))
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.returncode == 2
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_bad_checkpoints(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def message(path: Path) -> str:
        done = run_export("--checkpoint", str(path), "--context", "64", "--window", "8", "--out", str(out))
        assert done.returncode == 2
        assert not out.exists()
        return done.stderr

    truncated = tmp_path / "truncated"
    write_folder(truncated, draw_weights(SMALL, 0))
    weights = truncated / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert "truncated" in message(truncated)
    foreign = tmp_path / "foreign"
    write_folder(foreign, draw_weights(SMALL, 0))
    config = json.loads((foreign / "config.json").read_text(encoding="utf-8"))
    (foreign / "config.json").write_text(
        json.dumps(config | {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}), encoding="utf-8"
    )
    assert "gpt2" in message(foreign).lower()


def test_output_that_cannot_be_written(folder: Path, tmp_path: Path) -> None:
    occupied = tmp_path / "occupied"
    occupied.mkdir()
    (occupied / "thesis.tex").write_text("years of work", encoding="utf-8")
    done = run_export("--checkpoint", str(folder), "--out", str(occupied))
    assert done.returncode == 2
    assert "is not empty and not an artifact" in done.stderr
    assert (occupied / "thesis.tex").exists()
    done = run_export("--checkpoint", str(folder), "--out", "/proc/artifact")
    assert done.returncode == 2
    assert "cannot write to /proc" in done.stderr


def test_full_disk_leaves_nothing(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "model.pte").write_text("half", encoding="utf-8")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(UserError, match="is full: free some space"), atomic_folder(tmp_path / "out") as folder:
        fill(folder)
    assert list(tmp_path.iterdir()) == []


def test_missing_operator_library_fails_before_the_long_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAKV_OPS_LIBRARY", str(tmp_path / "gone.so"))
    options = ExportOptions(model="smollm2-135m-instruct", out=tmp_path / "out")

    def no_stage(name: str):  # type: ignore[no-untyped-def]
        raise AssertionError(f"reached {name}")

    with pytest.raises(UserError, match="which does not exist"):
        export_android(options, [], no_stage)


@pytest.mark.parametrize("remove", ["libadakv_ops.so", "model.pte"])
def test_generate_names_a_missing_file(
    tiny: tuple[Path, subprocess.CompletedProcess[str]], remove: str, tmp_path: Path
) -> None:
    out, _ = tiny
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in out.iterdir():
        if file.name != remove:
            (copy / file.name).symlink_to(file)
    command = [sys.executable, "-m", "adakv_model.generate", "--artifact", str(copy), "--prompt", "hi"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"lacks {remove}: export again" in done.stderr
