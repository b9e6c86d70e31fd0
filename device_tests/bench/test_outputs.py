"""Tables, plots, traces and the dashboard's schema, from rows."""

from __future__ import annotations

import io
import json
from itertools import groupby
from pathlib import Path

import pytest

from adakv_model.errors import UserError
from adakv_model.terminal import make_console
from device_tests.bench import dashboard, trace
from device_tests.bench.plan import Test
from device_tests.bench.plot import plot
from device_tests.bench.runner import throttled
from device_tests.bench.summary import groups
from device_tests.bench.table import show
from device_tests.bench.testing_device import probe_row, sample

HOST = {"selector": "host", "kind": "host", "emulated": True, "model": "Server", "soc": None}
ROWS = [
    sample(artifact, ms, rep, test=test, device=device)
    for artifact, ms in (("mine [3.25]", 2.0), ("fp16", 3.0))
    for rep in range(3)
    for test in (Test(0, 32, 0), Test(0, 0, 4), Test(64, 0, 4))
    for device in (HOST, {})
]


def text_of(rows: list, width: int = 200) -> list[str]:
    """What is shown of each device."""
    shown = []
    for _, part in groupby(
        sorted(groups(rows), key=lambda one: one.device["emulated"]), lambda one: one.device["kind"]
    ):
        console = make_console(stderr=False, file=io.StringIO(), width=width)
        show(list(part), console)
        shown.append(console.file.getvalue())  # type: ignore[attr-defined]
    return shown


def test_a_log_of_80_columns_has_whole_lines() -> None:
    long = [sample(f"smollm2-135m-instruct-{n}", 123.4, rep, test=Test(512, 0, 64)) for n in "ab" for rep in range(3)]
    for shown in text_of([*ROWS, *long], width=80):
        lines = shown.splitlines()
        assert max(len(line.rstrip()) for line in lines) <= 80
        assert "tg4 @ d64" in shown
        assert "…" not in shown
    wide = text_of(ROWS)[0].splitlines()
    assert sum(line.startswith("test ") for line in wide) == 1, "one table where there is room for one"


def test_columns_without_content_are_left_out() -> None:
    shown = text_of([sample("mine", 2.0, 0, test=Test(0, 32, 0))])[0]
    assert "notes" not in shown
    assert "step p90" not in shown
    assert "95 %" not in shown
    assert "notes" in text_of([sample("mine", 2.0, 0, throttled=True)])[0]


def test_a_phone_comes_before_everything_else() -> None:
    console = make_console(stderr=False, file=io.StringIO(), width=200)
    show(groups(ROWS), console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert shown.index("Phone (adb:1") < shown.index("not a phone")


def test_a_phone_never_shares_a_table_with_anything_else() -> None:
    phone, server = text_of(ROWS)
    assert "Phone (adb:1, SoC, 15)" in phone
    assert "not a phone" not in phone
    assert "host: Server [this machine, not a phone]" in server
    for shown in (phone, server):
        assert shown.count("mine [3.25]") == 3
        assert "pp32 @ d0" in shown
        assert "7 at 2.5, 1 at 4" in shown


def test_what_fails_parity_is_in_no_output(tmp_path: Path) -> None:
    rows = [*ROWS, probe_row("fp16", False), probe_row("fp16", False, "host")]
    assert not any("fp16" in shown for shown in text_of(rows))
    assert {record["metric"]["name"] for record in dashboard.records(rows)} == {
        "token_per_sec",
        "avg_inference_latency(ms)",
        "model_load_time(ms)",
        "peak_inference_mem_usage(mb)",
    }
    assert len(dashboard.records(rows)) == len(dashboard.records(ROWS)) / 2
    both = [*rows, probe_row("mine [3.25]", False), probe_row("mine [3.25]", False, "host")]
    with pytest.raises(UserError, match="nothing to plot"):
        plot(both, tmp_path / "x.png")


def test_the_dashboard_says_what_is_no_phone() -> None:
    runners = {record["runners"][0]["name"] for record in dashboard.records(ROWS)}
    assert runners == {"Phone", "Server (not a phone)"}
    speed = next(r for r in dashboard.records(ROWS) if r["metric"]["name"] == "token_per_sec")
    assert len(speed["metric"]["benchmark_values"]) == 3
    json.dumps(dashboard.records(ROWS), allow_nan=False)


def test_a_plot_is_drawn(tmp_path: Path) -> None:
    plot(ROWS, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_a_trace_holds_every_step_in_its_phase(tmp_path: Path) -> None:
    one = sample(test=Test(64, 0, 4), ms=2.0)
    trace.write(one, tmp_path / "trace")
    events = json.loads((tmp_path / "trace").read_text(encoding="utf-8"))["traceEvents"]
    phases = {e["name"]: e for e in events if e["ph"] == "X" and e["tid"] == trace.PHASES}
    steps = [e for e in events if e["ph"] == "X" and e["tid"] == trace.STEPS]
    assert [e["args"]["position"] for e in steps] == [64, 65, 66, 67]
    assert {"load", "warm_up", "fill", "decode"} == set(phases)
    decode = phases["decode"]
    assert steps[0]["ts"] == decode["ts"]
    assert steps[-1]["ts"] + steps[-1]["dur"] == pytest.approx(decode["ts"] + decode["dur"])
    assert {e["name"] for e in events if e["ph"] == "C"} >= {"resident MB", "cpu (C)", "core 1 MHz"}


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([2000, 2000], [2000, 1900], False),
        ([2000, 2000], [2000, 1600], True),
        ([], [], None),
        ([2000, 2000, 2000], [2000, 1900, 600], False),  # the third core had nothing to do
    ],
)
def test_throttling_is_a_drop_of_the_clocks_in_use(before: list[int], after: list[int], expected: bool | None) -> None:
    clocks = {"cores": list(range(len(before))), "before": before, "after": after}
    assert throttled({"runner": {"threads": 2}, "clocks_khz": clocks}) is expected
