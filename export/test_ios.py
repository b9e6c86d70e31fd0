"""export.py --target ios as a user meets it, on a tiny checkpoint: both programs, the report, bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adakv_model.checkpoints.testing_checkpoints import SMALL, write_folder
from adakv_model.checkpoints.weights import draw_weights
from adakv_model.errors import UserError
from adakv_model.runtime.artifact import Artifact
from device_tests.exporting import run_export


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    folder = tmp_path_factory.mktemp("tiny")
    write_folder(folder, draw_weights(SMALL, 0))
    return ("--target", "ios", "--checkpoint", str(folder), "--context", "64", "--window", "8", "--kv-bits", "8")


def test_package_is_complete_and_described(options: tuple[str, ...], tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run_export(*options, "--deployment-target", "iOS26", "--weights", "fp16", "--out", str(out), "--json")
    assert done.returncode == 0, done.stderr
    manifest = json.loads(done.stdout)
    assert manifest["target"] == "ios"
    assert {"decode", "prefill"} == set(manifest["methods"]) == set(manifest["report"]["functions"])
    assert manifest["report"]["specification_version"] == 10, "iOS 26"
    assert manifest["report"]["states"]["bytes"] == manifest["core_ml_states"]["bytes_allocated"]
    for function in manifest["report"]["functions"].values():
        assert sum(function["histogram"].values()) == function["operations"]
        assert function["bytes_per_call"]["weights"] > 2 * SMALL.vocab_size * SMALL.hidden_size
    assert (out / manifest["program"]).is_dir()
    assert all((out / name).is_file() for name in manifest["files"])
    assert [p.name for p in tmp_path.iterdir()] == ["out"], "nothing temporary is left"
    with pytest.raises(UserError, match="is a Core ML program: run it with"):
        Artifact(out).load()


def test_the_delegate_compiles_on_this_machine(options: tuple[str, ...], tmp_path: Path) -> None:
    """One delegate call is all that is left of the graph."""
    done = run_export(*options, "--backend", "executorch", "--out", str(tmp_path / "out"), "--json")
    assert done.returncode == 0, done.stderr
    manifest = json.loads(done.stdout)
    assert manifest["operators"] == {"executorch_call_delegate": 1}
    assert manifest["weights"] == "fp16"
    share = manifest["core_ml_states"]["share_of_fp16"]
    assert f"{100 * share:.1f} % of fp16" in " ".join(done.stderr.replace("│", " ").split()), "fp16 states, not rows"
    assert (tmp_path / "out" / "model.pte").stat().st_size > 2 * SMALL.vocab_size * SMALL.hidden_size


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--weights", "int3"), "unknown --weights 'int3': one of fp16, int8, int4"),
        (("--deployment-target", "iOS17"), "unknown --deployment-target 'iOS17': one of iOS18, iOS26"),
        (("--backend", "metal"), "unknown --backend 'metal'"),
        (("--cache-io", "int4"), "unknown --cache-io 'int4': one of states, int8"),
        (("--cache-io", "int8"), "--cache-io int8 needs --deployment-target iOS26"),
        (("--cache-io", "int8", "--backend", "xnnpack"), "--cache-io is for --target ios (--backend coreml), and"),
        (("--window-bits", "16", "--kv-bits", "12"), "drop --window-bits 16"),
        (("--kv-bits", "1"), "--kv-bits 1 is impossible"),
    ],
)
def test_bad_options_give_one_line_and_no_artifact(
    options: tuple[str, ...], extra: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    done = run_export(*options, *extra, "--out", str(tmp_path / "out"))
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.returncode == 2, done.stderr
    assert len(errors) == 1
    assert message in errors[0]
    assert list(tmp_path.iterdir()) == []
