"""pareto.py: it makes missing points once, keeps the newest ones, and draws and tabulates them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import pareto
from evaluation import frontier, results

PNG = b"\x89PNG\r\n"


def run(folder: Path, *flags: str, **options: Any) -> Any:
    values = {"out": folder / "pareto", "results": folder / "r.jsonl", **options}
    words = [str(x) for name, value in values.items() for x in (f"--{name.replace('_', '-')}", value)]
    return CliRunner().invoke(pareto.app, [*words, *flags])


def test_missing_points_are_made_once(tiny_folder: Path, tiny_data: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "contexts": "32,64", "policies": "static-2,static-3,naive-4", "checkpoint": tiny_folder, "data_dir": tiny_data,
        "tokens": 256, "window": 8, "work_dir": tmp_path / "work",
    }  # fmt: skip
    for _ in range(2):
        done = run(tmp_path, "--run", **options)
        assert done.exit_code == 0, done.output
    assert (tmp_path / "r.jsonl").read_text(encoding="utf-8").count("\n") == 6
    points = json.loads((tmp_path / "pareto.json").read_text(encoding="utf-8"))["points"]
    assert [(p["context"], p["policy"]) for p in points if p["policy"] != "naive-4"] == [
        (32, "static-2"), (32, "static-3"), (64, "static-2"), (64, "static-3"),
    ]  # fmt: skip
    assert all(p["loss_diff_se"] > 0 for p in points)
    assert (tmp_path / "pareto.png").read_bytes().startswith(PNG)
    table = (tmp_path / "pareto.md").read_text(encoding="utf-8")
    assert "Context 32, 8 windows" in table
    assert table.count("| static-3 |") == 2


def row(**changes: Any) -> dict[str, Any]:
    return {
        "task": "wikitext2", "model": "m", "policy": "adaptive", "kv_bits": 3.0, "context": 512, "window": 32,
        "window_bits": None, "total_bits": 3.0, "loss_diff": 0.02, "loss_diff_se": 0.001, "ppl": 20.0, "n": 10,
        "tokens": 5110, **changes,
    }  # fmt: skip


def test_points_are_the_newest_and_longest_of_simulated_policies() -> None:
    rows = [
        row(loss_diff=0.5, n=2, tokens=1022),
        row(loss_diff=0.03),
        row(loss_diff=0.01),
        row(artifact="mine", loss_diff=9.0),
        row(policy="fp16", kv_bits=None),
        row(task="piqa"),
        row(context=1024),
        row(policy="static-3", kv_bits=None, total_bits=3.4),
    ]
    chosen = frontier.points(rows, "wikitext2", [512])
    assert [(p.family, p.bits, p.loss_diff) for p in chosen] == [("adaptive", 3.0, 0.01), ("static", 3.4, 0.02)]


def test_a_difference_of_nothing_can_be_drawn(tmp_path: Path) -> None:
    """8 bits lose less than the floor of the plot, sometimes less than nothing; one window has no error."""
    for number, difference in enumerate((-0.001, 0.0, 0.02)):
        point = row(kv_bits=3.0 + number, total_bits=3.0 + number, loss_diff=difference, loss_diff_se=None)
        results.append(tmp_path / "r.jsonl", point)
    done = run(tmp_path, contexts="512")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "pareto.png").read_bytes().startswith(PNG)
    assert "| adaptive 3 | 3.00 | 20.00 | -0.10 % | -0.0010 |  |" in (tmp_path / "pareto.md").read_text(
        encoding="utf-8"
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "make some with `adakv evaluate`"),
        ({"contexts": "short"}, "takes whole numbers separated by commas"),
        ({"out": "/nowhere/pareto"}, "does not exist"),
    ],
)
def test_bad_input_is_one_line(options: dict[str, Any], expected: str, tmp_path: Path) -> None:
    done = run(tmp_path, **options)
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert expected in done.stderr


def test_no_points_is_an_error(tmp_path: Path) -> None:
    results.append(tmp_path / "r.jsonl", row(task="piqa"))
    assert "pass --run" in run(tmp_path).stderr
