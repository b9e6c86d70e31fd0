"""--dry-run tells what the export will make, without weights."""

from __future__ import annotations

import io
import json
import os
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from adakv_model.checkpoints.testing_checkpoints import SMALL, write_folder
from adakv_model.checkpoints.weights import draw_weights
from adakv_model.config import MODELS
from adakv_model.errors import UserError
from adakv_model.terminal import make_console
from export import dry_run, plan_drawing
from export.cli import app
from export.options import ExportOptions


def test_the_plan_of_a_registered_model_needs_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAKV_CACHE", "/nonexistent")
    planned = dry_run.plan(ExportOptions(kv_bits=3.5))
    assert planned.calibrated
    assert planned.cache["bits_per_value"] <= 3.5
    assert planned.weights["bits_per_weight"] == pytest.approx(5.0, abs=0.01)
    bits = planned.to_json()["bits"]
    assert bits["rows"] + bits["bookkeeping"] == pytest.approx(planned.cache["bits_per_value"], abs=1e-3)


def test_a_folder_needs_its_configuration_alone(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "small", draw_weights(SMALL, seed=1))
    (folder / "model.safetensors").unlink()
    planned = dry_run.plan(ExportOptions(checkpoint=folder, context=64, window=8))
    assert planned.name == "small"
    assert planned.cache["n_layers"] == SMALL.n_layers
    assert any("out of reach" in note for note in planned.notes), "bookkeeping alone takes more than a bit here"
    assert any("no calibration tables" in note for note in planned.notes)
    with pytest.raises(UserError, match="does not exist"):
        dry_run.plan(ExportOptions(checkpoint=tmp_path / "nowhere"))


def test_thin_rows_are_not_unseen() -> None:
    """At context 512 the window eats a budget that is comfortable at 2,048."""
    short = dry_run.plan(ExportOptions(context=512, kv_bits=2.75))
    assert any("older tokens keep 2.1" in note for note in short.notes)
    assert dry_run.plan(ExportOptions(context=2048, kv_bits=2.75)).notes == []


@pytest.mark.parametrize("width", [40, 50, 80])
@pytest.mark.parametrize("options", [ExportOptions(), ExportOptions(target="ios"), ExportOptions(kv="fp16")])
def test_the_parts_of_the_drawing_are_the_whole_cache(options: ExportOptions, width: int) -> None:
    planned = dry_run.plan(options)
    cache = plan_drawing.as_core_ml(planned.cache, planned.states)
    parts = plan_drawing.parts(cache)
    assert sum(part["bytes"] for part in parts) == cache["bytes_allocated"]
    assert all(part["bytes"] >= 0 for part in parts)
    console = make_console(stderr=False, width=width, record=True, file=io.StringIO())
    plan_drawing.show(cache, console)
    shown = console.export_text()
    assert all(f"{part['bytes']:,}" in shown for part in parts if part["bytes"])
    assert shown.count(" %\n") + shown.count(" % ") > sum(part["bytes"] > 0 for part in parts), "shares are whole"
    assert "…" not in shown
    assert width == 40 or all(len(line) <= width for line in shown.splitlines())


def test_core_ml_sizes_are_those_of_its_own_storage() -> None:
    planned = dry_run.plan(ExportOptions(target="ios", weights="int4"))
    assert planned.states is not None
    assert planned.states["bytes_allocated"] > planned.cache["bytes_allocated"]
    assert json.loads(json.dumps(planned.to_json()))["target"] == "ios"


def test_it_says_what_an_export_would_replace(tmp_path: Path) -> None:
    out = tmp_path / "mine"
    assert "replaces" not in CliRunner().invoke(app, ["--dry-run", "--out", str(out)]).stderr
    out.mkdir()
    (out / "manifest.json").write_text("{}", encoding="utf-8")
    os.utime(out / "manifest.json", (1.5e9, 1.5e9))
    done = CliRunner().invoke(app, ["--dry-run", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert re.search(rf"note: replaces the artifact of 2017-07-1[345] ..:.. in {out}", done.stderr)


def test_all_registered_models_can_be_planned() -> None:
    for name, spec in MODELS.items():
        planned = dry_run.plan(ExportOptions(model=name, context=1024))
        assert planned.cache["n_layers"] == spec.config.n_layers
