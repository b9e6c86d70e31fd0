"""Tests of bench_kernels.py: what is computed from cells, and one short run of the real program."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import bench_kernels
from adakv_model.errors import UserError
from kernel_speed import arm
from kernel_speed.program import require
from kernel_speed.summary import bits_name, rooflines, row_verdicts, timings


def cell(kind: str, ns: float, **changes: Any) -> dict[str, Any]:
    """Two runs of 1,000 units, the second slower."""
    made = {"kind": kind, "isa": "avx2", "place": "memory", "bits": 3, "slots": 512, "threads": 1, "units": 1000}
    return made | {"bytes": 25_000, "ns": [ns, 2 * ns]} | changes


LINES = [
    cell("clock", 500, isa="", units=1500),  # 3 GHz
    cell("read", 1000, isa="", bytes=20_000),
    cell("copy", 1000, isa="", bytes=10_000),
]


def row_cells(score: float, total: float, bits: int = 3) -> list[dict[str, Any]]:
    return LINES + [
        cell(kind, ns, place=place, bits=bits)
        for place in ("memory", "cache")
        for kind, ns in (("score", score), ("sum", total))
    ]


def test_a_copy_counts_what_it_reads_and_what_it_writes() -> None:
    line = rooflines(LINES)[1]
    assert (line.clock_ghz, line.read, line.copy) == (3.0, 20.0, 20.0)


def test_cycles_are_of_the_measured_clock() -> None:
    score = next(t for t in timings(row_cells(4000, 5000)) if t.kind == "score")
    assert (score.ns_min, score.ns_median, score.cycles, score.gb_s) == (4.0, 6.0, 12.0, 6.25)


@pytest.mark.parametrize(("score", "total", "reached"), [(4000, 4300, True), (4000, 4400, False)])
def test_narrow_rows_have_25_cycles_for_keys_and_values_together(score: float, total: float, reached: bool) -> None:
    (verdict,) = row_verdicts(row_cells(score, total))
    assert verdict.reached is reached


@pytest.mark.parametrize(("ns", "reached"), [(2500, True), (2600, False)])
def test_wide_rows_have_half_of_a_copy(ns: float, reached: bool) -> None:
    (verdict,) = row_verdicts(row_cells(ns, ns, bits=8))
    assert verdict.reached is reached


def test_banded_keys_stand_beside_three_bit_values() -> None:
    banded = 0x02020304
    (verdict,) = row_verdicts(
        [*row_cells(4000, 5000)[:3]]
        + [cell("score", 4000, place=place, bits=banded) for place in ("memory", "cache")]
        + [cell("sum", 5000, place=place) for place in ("memory", "cache")]
    )
    assert (verdict.bits, verdict.sum.bits) == ("4/3/2/2", "3")


def test_widths_are_read_and_named_alike() -> None:
    assert [bits_name(b) for b in bench_kernels.parse_bits("2,16,8/4/3/2")] == ["2", "16", "8/4/3/2"]
    for wrong in ("5", "4/3", "16/4/4/4", "x"):
        with pytest.raises(UserError, match="--bits"):
            bench_kernels.parse_bits(wrong)


def test_a_missing_tool_is_one_line_with_its_remedy() -> None:
    with pytest.raises(UserError, match="no-such-tool is missing: apt-get install it"):
        require("no-such-tool", "apt-get install it")


def test_a_short_run_measures_what_it_was_asked_for(tmp_path: Path) -> None:
    rows = ["--slots", "512", "--bits", "3,8,4/3/2/2", "--threads", "1", "--rounds", "2"]
    options = [*rows, "--isa", "scalar,avx2,neon", "--no-weights"]
    paths = ["--json", str(tmp_path / "k.json"), "--plot", str(tmp_path / "k.png")]
    done = CliRunner().invoke(bench_kernels.app, [*options, *paths])
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "k.json").read_text(encoding="utf-8"))
    assert {t["kind"] for t in result["timings"]} == {"score", "sum", "softmax"}
    assert {(v["isa"], v["bits"]) for v in result["verdicts"]} >= {("scalar", b) for b in ("3", "8", "4/3/2/2")}
    assert all(t["ns_min"] > 0 for t in result["timings"])
    assert (tmp_path / "k.png").stat().st_size > 10_000


def test_instructions_for_the_estimate_have_no_addresses() -> None:
    assert arm.plain("b.ne\t400b20 <main+0x20>  // b.any") == "b.ne\t#16"
    assert arm.plain("adrp\tx2, 4b0000 <table>") == "adrp\tx2, #4096"
    assert arm.plain("add\tx0, x1, #0x10") == "add\tx0, x1, #0x10"


def test_what_ran_between_the_marks_is_read_from_the_log(tmp_path: Path) -> None:
    names = [(0x400, "main"), (0x500, "trace_begin"), (0x600, "kernel"), (0x604, ""), (0x700, "trace_end")]
    names += [(0x404, "main")]
    log = tmp_path / "log"
    log.write_text(
        "".join(f"Trace 0: 0x7f [00000001/{a:016x}/00000001/00000201] {n}\n" for a, n in names), encoding="utf-8"
    )
    assert arm.executed(log) == [0x500, 0x600, 0x604]
    log.write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="no kernel call"):
        arm.executed(log)


def test_a_little_core_takes_more_cycles_than_a_large_one(tmp_path: Path) -> None:
    try:
        arm.Tools.find()
    except UserError as error:
        pytest.skip(str(error))
    options = ["--arm", "--bits", "4", "--cpus", "cortex-x4,cortex-a55", "--json", str(tmp_path / "arm.json")]
    done = CliRunner().invoke(bench_kernels.app, options)
    assert done.exit_code == 0, done.output
    assert "ESTIMATE" in done.output
    result = json.loads((tmp_path / "arm.json").read_text(encoding="utf-8"))
    assert result["measured"] is False
    cycles = {(r["kind"], r["isa"], r["cpu"]): r["cycles"] for r in result["rows"]}
    assert ("score", "i8mm", "cortex-a55") not in cycles  # which has no such instructions
    for kind in ("score", "sum"):
        assert 0 < cycles[kind, "dotprod", "cortex-x4"] < cycles[kind, "dotprod", "cortex-a55"]
