"""weight_recipes.py on a model of a few thousand weights: the command, what it keeps, and its errors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import weight_recipes
from adakv_model.model import Llama
from training.testing import write_tiny_folder


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the tiny checkpoint and its text under the name of the evaluation text."""
    monkeypatch.setenv("ADAKV_CACHE", str(tmp_path / "cache"))
    write_tiny_folder(tmp_path)
    shutil.copy(tmp_path / "text.txt", tmp_path / "plain.txt")
    monkeypatch.setattr(weight_recipes, "TEXT", "plain.txt")
    return tmp_path


def invoke(data: Path, *options: str) -> Any:
    common = ("--checkpoint", str(data), "--data-dir", str(data), "--tokens", "256", "--context", "64", "--json")
    return CliRunner().invoke(weight_recipes.app, [*common, *options])


def test_recipes_are_compared_with_float_on_the_same_tokens(data: Path) -> None:
    result = invoke(data, "--recipes", "8da8w,none/8")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["recipes"]
    assert [row["recipe"] for row in rows] == ["8da8w", "none"]
    for row in rows:
        assert row["n"] == 4 * 63
        assert 0 < abs(row["loss_diff"]) < 0.2
        assert row["loss_diff_se"] > 0
    assert rows[0]["bits_per_weight"] < rows[1]["bits_per_weight"]


def test_known_results_are_not_computed_again(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = invoke(data, "--recipes", "8da8w")
    monkeypatch.setattr(weight_recipes, "quantize_weights", lambda *_: pytest.fail("computed again"))
    assert invoke(data, "--recipes", "8da8w").stdout == first.stdout


def test_mixtures_widen_the_most_sensitive_layers(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model's widths allow no groups of 32, so rounding of the layers is simulated."""

    def coarse(model: Llama, recipe: str, embedding: str, wide_layers: Collection[int] = ()) -> None:
        for i, (block, step) in enumerate(zip(model.blocks(), (0.05, 0.4), strict=True)):
            if i not in wide_layers:
                weight = block.mlp.down_proj.weight.data
                block.mlp.down_proj.weight = torch.nn.Parameter((weight / step).round() * step)

    monkeypatch.setattr(weight_recipes, "quantize_weights", coarse)
    monkeypatch.setattr(weight_recipes, "CALIBRATION_TEXT", "text.txt")
    result = invoke(data, "--recipes", "8da8w", "--mixtures", "0,1,2")
    assert result.exit_code == 0, result.output
    _, none, one, both = json.loads(result.stdout)["recipes"]
    assert (none["wide"], one["wide"], both["wide"]) == ("[]", "[1]", "[0, 1]")
    assert none["loss_diff"] != both["loss_diff"] == 0.0


def test_shuffled_channels_are_another_result_of_the_same_float_model(data: Path) -> None:
    plain, shuffled = (
        json.loads(invoke(data, "--recipes", "8da8w", *more).stdout)["recipes"][0] for more in ((), ("--shuffle",))
    )
    assert shuffled["float_ppl"] == pytest.approx(plain["float_ppl"], rel=1e-4)
    assert shuffled["shuffled"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--recipes", "5da5w"), "unknown recipe '5da5w'"),
        (("--tokens", "10000"), "fewer than the"),
        (("--data-dir", "/nowhere"), "cannot read /nowhere/plain.txt"),
    ],
)
def test_bad_input_is_one_line(data: Path, options: tuple[str, ...], message: str) -> None:
    result = invoke(data, *options)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
