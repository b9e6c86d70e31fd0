"""Tests of profile_step.py and capacity_speed.py: what is read from traces and samples, and short runs on a tiny
artifact."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import capacity_speed
import profile_step
from adakv_model.errors import UserError
from adakv_model.runtime.artifact import Artifact
from make_tiny_artifact import main as make_tiny_artifact
from pages import markdown_table, replace_section
from step_profile.events import ATTENTION, CONTROLLER, OTHER, RUNTIME, WEIGHTS, Event, groups, operators
from step_profile.functions import count, perf
from step_profile.report import Profile, group_rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("profile") / "tiny"
    make_tiny_artifact(out)
    return out


EVENTS = [
    Event("adakv::depart.out", [0.5, 0.5]),
    Event("OPERATOR_CALL", [1.0, 1.0]),
    Event("Fully Connected (NC, F32) GEMM #1", [0.5, 0.5]),
    Event("DELEGATE_CALL", [2.0, 2.0]),
    Event("adakv::assign.out", [0.5, 0.5]),
    Event("OPERATOR_CALL", [1.0, 1.0]),
    Event("adakv::attend.out", [3.0, 5.0]),
    Event("OPERATOR_CALL", [4.0, 6.0]),
    Event("adakv::attend.out", [3.0, 3.0]),
    Event("OPERATOR_CALL", [4.0, 4.0]),
    Event("Fully Connected (NC, F32) GEMM #1", [0.5, 0.5]),
    Event("DELEGATE_CALL", [7.0, 7.0]),
    Event("Fully Connected (NC, F32) GEMM #1", [0.5, 0.5]),
    Event("Reciprocal Square Root (NC) #1", [0.5, 0.5]),
    Event("DELEGATE_CALL", [0.25, 0.25]),
    Event("Method::execute", [20.0, 24.0]),
]


def test_every_operator_has_one_group_and_the_runtime_has_the_rest() -> None:
    found, total = operators(EVENTS)
    assert (found[0].name, found[0].calls, found[0].ms) == ("adakv::attend", 2, 9.0), "calls are summed in each step"
    sums = groups(found, total)
    assert sums == {CONTROLLER: 4.0, ATTENTION: 9.0, WEIGHTS: 7.0, OTHER: 0.25, RUNTIME: 1.75}
    assert sum(sums.values()) == total == 22.0


def test_a_runtime_without_a_tracer_is_named() -> None:
    with pytest.raises(UserError, match="no event tracer"):
        operators([])


SAMPLES = """
   880     7f5f71d58cb8 (anonymous namespace)::score(adakv::Rows const&, float*, long) (/a b/libadakv_ops.so)
   880     7f5f71d58cc8 (anonymous namespace)::score(adakv::Rows const&, float*, long) (/a b/libadakv_ops.so)
   881     7f5f72291b46 adakv::avx2::int4(adakv::Int4Matrix const&, long) (/x/libadakv_ops.so)
   881     7f5f71e9c01d _PyEval_EvalFrameDefault (/usr/lib/libpython3.11.so.1.0)
"""


def test_samples_are_counted_by_what_a_function_does() -> None:
    found = count(SAMPLES.replace("/a b/", "/a/"))
    assert [(f.part, f.name, f.share) for f in found] == [
        ("K scores", "score", 0.5),
        ("4-bit layers", "avx2::int4", 0.25),
        ("Python, C library, kernel", "_PyEval_EvalFrameDefault", 0.25),
    ]


def test_the_limit_is_bytes_by_bandwidth() -> None:
    sums = {WEIGHTS: 4.0, ATTENTION: 2.0, CONTROLLER: 0.5, OTHER: 0.5, RUNTIME: 1.0}
    profile = Profile(512, 2, "avx2", 7.5, 7.75, 8.0, sums, [], [], 60_000_000, 15_000_000, 30.0)
    assert (profile.limit(WEIGHTS), profile.limit(ATTENTION), profile.limit()) == (2.0, 0.5, 2.5)
    assert group_rows(profile)[0] == (WEIGHTS, "4.000", "50%", "60.0", "2.00", "50%")


def test_a_section_of_a_page_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- begin x -->\nold\n<!-- end x -->\nb\n", encoding="utf-8")
    replace_section(page, "x", markdown_table(["n", "ms"], [["one", "2"]]))
    assert (
        page.read_text(encoding="utf-8")
        == "a\n<!-- begin x -->\n| n | ms |\n| --- | ---: |\n| one | 2 |\n<!-- end x -->\nb\n"
    )
    with pytest.raises(UserError, match="no section y"):
        replace_section(page, "y", "")


def test_a_short_profile_adds_up(folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "speed.md"
    page.write_text("<!-- begin profile_step -->\n<!-- end profile_step -->\n", encoding="utf-8")
    try:
        perf()
        sampling = ["--functions"]
    except UserError:
        sampling = ["--no-functions"]
    options = ["--artifact", str(folder), "--contexts", "64", "--threads", "1", "--steps", "4", *sampling]
    done = CliRunner().invoke(profile_step.app, [*options, "--json", str(tmp_path / "p.json"), "--page", str(page)])
    assert done.exit_code == 0, done.output
    (profile,) = json.loads((tmp_path / "p.json").read_text(encoding="utf-8"))["profiles"]
    assert min(profile["groups"][WEIGHTS], profile["groups"][ATTENTION]) > 0
    assert sum(profile["groups"].values()) == pytest.approx(profile["traced"], rel=1e-6)
    calls = {o["name"]: o["calls"] for o in profile["operators"]}
    assert calls["adakv::attend"] == 2, "one a layer"
    assert sum(profile["parts"].values()) == pytest.approx(1.0 if sampling == ["--functions"] else 0.0)
    assert WEIGHTS in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--contexts", "512"], "export with --context 512"), (["--contexts", "8"], "at least twice --steps")],
)
def test_what_cannot_be_profiled_is_one_line(folder: Path, options: list[str], message: str) -> None:
    done = CliRunner().invoke(profile_step.app, ["--artifact", str(folder), "--no-functions", *options])
    assert done.exit_code == 2
    assert message in done.output


def test_capacities_are_compared_on_equal_terms(folder: Path) -> None:
    artifact = Artifact(folder)
    with pytest.raises(UserError, match="not fewer"):
        capacity_speed.same_model(artifact, artifact)
    samples = capacity_speed.measure([artifact, artifact], fill=24, steps=4, threads=1, rounds=1)
    assert [len(ms) for ms in samples] == [4, 4]
    assert all(ms > 0 for sample in samples for ms in sample)
