"""evaluate.py on an exported program: the same numbers as the simulated cache."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import evaluate
from adakv_model.runtime.manifest import MANIFEST
from evaluation.lm_eval_model import AdaKV
from evaluation.testing import ITEMS, arguments
from export.android import export_android
from export.options import ExportOptions


@pytest.fixture(scope="module")
def artifact(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A static-3 program with float weights."""
    folder = tmp_path_factory.mktemp("artifact") / "static-3"
    options = ExportOptions(
        checkpoint=tiny_folder,
        out=folder,
        context=64,
        window=8,
        kv="static-3",
        quantize="none",
        embedding="none",
        logits="all",
    )
    export_android(options, sys.argv, lambda name: nullcontext())
    return folder


def changed(artifact: Path, copy: Path, **sections: Any) -> Path:
    """A copy with other sections in its manifest."""
    copy.mkdir()
    for file in artifact.iterdir():
        if file.name != MANIFEST:
            (copy / file.name).symlink_to(file)
    manifest = json.loads((artifact / MANIFEST).read_text(encoding="utf-8"))
    (copy / MANIFEST).write_text(json.dumps(manifest | sections), encoding="utf-8")
    return copy


def run(checkpoint: Path, data: Path, out: Path, **changes: Any) -> dict[str, Any]:
    done = CliRunner().invoke(evaluate.app, arguments(checkpoint, data, out, policy="static-3", **changes))
    assert done.exit_code == 0, done.output
    return json.loads((out / "out.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("task", ["wikitext2", "piqa"])
def test_the_program_reproduces_the_simulator(
    task: str, artifact: Path, tiny_folder: Path, tiny_data: Path, tmp_path: Path
) -> None:
    simulated = run(tiny_folder, tiny_data, tmp_path, task=task)
    program = run(tiny_folder, tiny_data, tmp_path, task=task, artifact=artifact)
    assert program["loss"] == pytest.approx(simulated["loss"], rel=2e-3)
    assert program["loss_diff"] == pytest.approx(simulated["loss_diff"], abs=2e-3 * simulated["loss"])
    assert program["total_bits"] == pytest.approx(simulated["total_bits"], rel=1e-6)
    assert program["tokens_by_tier"] == simulated["tokens_by_tier"]
    assert program["n"] == simulated["n"]
    if task == "piqa":
        assert program["acc_norm"] == pytest.approx(simulated["acc_norm"], abs=1.5 / ITEMS)
    assert (program["artifact"], program["policy"]) == ("static-3", "static-3")
    assert program["allocated_bits"] == pytest.approx(simulated["allocated_bits"])


def test_a_program_against_itself_differs_by_nothing(
    artifact: Path, tiny_folder: Path, tiny_data: Path, tmp_path: Path
) -> None:
    out = run(tiny_folder, tiny_data, tmp_path, artifact=artifact, **{"reference-artifact": artifact})
    assert (out["loss_diff"], out["same_choice"]) == (0.0, 1.0)


def test_a_program_of_other_weights_is_refused(
    artifact: Path, tiny_folder: Path, tiny_data: Path, tmp_path: Path
) -> None:
    model = json.loads((artifact / MANIFEST).read_text(encoding="utf-8"))["model"]
    model["source"]["sha256"] = "0" * 64
    other = changed(artifact, tmp_path / "other", model=model)
    done = CliRunner().invoke(evaluate.app, arguments(tiny_folder, tiny_data, tmp_path, artifact=other))
    assert done.exit_code == 2
    assert "exported from other weights" in done.stderr


def test_a_program_with_the_last_logits_is_refused(
    artifact: Path, tiny_folder: Path, tiny_data: Path, tmp_path: Path
) -> None:
    other = changed(artifact, tmp_path / "other", logits="last")
    done = CliRunner().invoke(evaluate.app, arguments(tiny_folder, tiny_data, tmp_path, artifact=other))
    assert done.exit_code == 2
    assert "returns the logits of a step's last token only: export with --logits all" in done.stderr


def test_lm_eval_generates_with_the_program(artifact: Path, tiny_folder: Path) -> None:
    """The program's greedy text is the simulated cache's."""
    from test_run_lm_eval import Request

    asked = [Request(("w3 w1 w4 w1 w5", {"until": [], "max_gen_toks": 20}))]
    program = AdaKV(pretrained=str(tiny_folder), artifact=str(artifact))
    simulated = AdaKV(pretrained=str(tiny_folder), policy="static-3", max_length=64, window=8)
    assert program.generate_until(asked, disable_tqdm=True) == simulated.generate_until(asked, disable_tqdm=True)
