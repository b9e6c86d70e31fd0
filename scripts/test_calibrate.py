"""calibrate.py and what it measures, on models of a few thousand weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

import calibrate
from adakv_model.corpus import cut_windows
from adakv_model.kv_cache import FloatCache
from adakv_model.model import build_model, rope_tables
from adakv_model.tables import CalibrationTables
from adakv_model.window import left
from training import collect
from training.attention import LayerTrace, TracingCache, _Attention, _Geometry
from training.frequency import SMOOTHING, log_frequencies
from training.testing import CONFIG, WORDS, arguments, tiny_weights


def run(folder: Path, tables: Path, **changes: Any) -> CalibrationTables:
    result = CliRunner().invoke(calibrate.app, arguments(folder, tables, **changes))
    assert result.exit_code == 0, result.output
    return CalibrationTables.load(tables)


@pytest.mark.parametrize("departure", [1, 32])
def test_far_gradients_equal_those_of_a_model_with_separate_far_tensors(departure: int) -> None:
    """The construction of docs/training.md: near pairs read k_near, v_near, far pairs k_far, v_far."""
    torch.manual_seed(0)
    count, window = 150, 10  # more than two blocks of queries
    q, k, v = torch.randn(2, 3, count, 16), torch.randn(2, count, 16), torch.randn(2, count, 16)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    trace = LayerTrace.zeros(count, torch.zeros(2, 2, count))
    geometry = _Geometry(torch.zeros(2, 16), window, departure, 5, *rope_tables(CONFIG, count))
    out = _Attention.apply(*leaves, trace, geometry)
    direction = torch.randn_like(out)
    dq, dk, dv = torch.autograd.grad(out, leaves, direction)

    age = torch.arange(count).unsqueeze(1) - torch.arange(count)
    q2, *rows = (x.clone().requires_grad_() for x in (q, k, k, v, v))
    k_near, k_far, v_near, v_far = rows
    query = torch.arange(count).unsqueeze(1)
    far = torch.arange(count) <= query // departure * departure - window
    far_scores, near_scores = (torch.einsum("hgtd,hnd->hgtn", q2, x) for x in (k_far, k_near))
    scores = torch.where(far, far_scores, near_scores)
    p = scores.masked_fill(age < 0, -torch.inf).softmax(-1)
    parts = [torch.einsum("hgtn,hnd->hgtd", p * mask, x) for mask, x in ((far, v_far), (~far, v_near))]
    expected = parts[0] + parts[1]
    gradients = torch.autograd.grad(expected, (q2, k_near, k_far, v_near, v_far), direction, retain_graph=True)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(dq, gradients[0])
    torch.testing.assert_close(dk, gradients[1] + gradients[2])
    torch.testing.assert_close(dv, gradients[3] + gradients[4])
    squares = torch.stack([gradients[i].square().sum(-1) for i in (2, 4)])
    torch.testing.assert_close(trace.gradient_square, squares, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(trace.k_outer.diagonal(dim1=-2, dim2=-1).sum((-2, -1)), far_and_rows(squares[0], k))
    torch.testing.assert_close(trace.own, p.diagonal(dim1=-2, dim2=-1).sum((0, 1)))
    torch.testing.assert_close(trace.received, (p.sum((0, 1)) * ((age >= 1) & (age <= 5))).sum(0))


def far_and_rows(squares: Tensor, k: Tensor) -> Tensor:
    """Traces of both K moments, without the sink; a rotation changes no norm."""
    return torch.stack((squares[:, 1:].sum(), k[:, 1:].square().sum()))


def test_tracing_cache_gives_the_logits_of_the_float_cache() -> None:
    tokens = torch.randint(WORDS, (1, 100), generator=torch.Generator().manual_seed(2))
    zeros = torch.zeros(CONFIG.n_layers, CONFIG.n_kv_heads, CONFIG.head_dim)
    caches = FloatCache(CONFIG, 100), TracingCache(CONFIG, 100, zeros, zeros, 8, 4)
    logits = [build_model(CONFIG, tiny_weights(), cache)(tokens, torch.tensor([0])) for cache in caches]
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("departure", [1, 4])
def test_damage_predicts_the_loss_that_noise_adds(departure: int) -> None:
    """Summed over tokens, damage * variance is the KL divergence that Gaussian noise on far rows causes."""
    torch.manual_seed(3)
    count, window, noise, draws = 32, 6, 0.02, 40
    tokens = torch.randint(WORDS, (1, count))
    means = torch.zeros(2, CONFIG.n_layers, CONFIG.n_kv_heads, CONFIG.head_dim)
    tracing = TracingCache(CONFIG, count, means[0], means[1], window, 0, departure)
    model = build_model(CONFIG, tiny_weights(), tracing)
    predicted = 0.0
    for seed in range(draws):
        record = collect.trace_window(model, tracing, tokens[0], torch.zeros(WORDS + 1), [seed])
        predicted += float(record.damage[0].sum()) * noise**2 / draws
    assert not record.damage[..., 0].any()
    assert not record.damage[..., left(count - 1, window, departure) :].any()
    assert record.damage[0][..., 1 : left(count - 1, window, departure)].all()

    class Noisy(FloatCache):
        amount = 0.0

        def attend(self, layer: int, qkv: Tensor, plan: Tensor, input_pos: Tensor) -> Tensor:
            parts = qkv.reshape(1, count, -1, 16).split([4, 2, 2], dim=2)
            q, k = (self._rope(x, plan)[0] for x in parts[:2])
            rows = [x.repeat_interleave(2, 0) for x in (k, parts[2][0].transpose(0, 1))]
            unit = [torch.randn(2, count, 16).repeat_interleave(2, 0) for _ in rows]
            far_rows = [
                x + self.amount * x.square().mean(-1, keepdim=True).sqrt() * u for x, u in zip(rows, unit, strict=True)
            ]
            far_rows = [torch.cat((x[:, :1], y[:, 1:]), dim=1) for x, y in zip(rows, far_rows, strict=True)]
            age = plan.unsqueeze(1) - plan
            gone = plan < plan.unsqueeze(1) // departure * departure - window + 1
            far_scores, near_scores = (q @ x.transpose(1, 2) / 4 for x in (far_rows[0], rows[0]))
            scores = torch.where(gone, far_scores, near_scores)
            p = scores.masked_fill(age < 0, -torch.inf).softmax(-1)
            out = (p * gone) @ far_rows[1] + (p * ~gone) @ rows[1]
            return out.transpose(0, 1).reshape(1, count, -1)

    noisy = Noisy(CONFIG, count)
    model.cache = noisy
    with torch.no_grad():
        exact = model(tokens, torch.tensor([0])).log_softmax(-1)
        noisy.amount, measured = noise, 0.0
        for _ in range(draws):
            p = model(tokens, torch.tensor([0])).log_softmax(-1)
            measured += float((exact.exp() * (exact - p)).sum()) / draws
    assert predicted == pytest.approx(measured, rel=0.25)


def test_two_runs_give_equal_files_and_the_second_resumes(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(tiny_folder, tmp_path / "a.safetensors")
    traced: list[int] = []
    original = collect.trace_window

    def counting(*args: Any) -> collect.WindowRecord:
        traced.append(1)
        return original(*args)

    monkeypatch.setattr(collect, "trace_window", counting)
    second = run(tiny_folder, tmp_path / "b.safetensors")
    assert not traced
    assert (tmp_path / "a.safetensors").stat().st_size == (tmp_path / "b.safetensors").stat().st_size
    damaged = sorted((tmp_path / "work").glob("*/000?-?.safetensors"))
    assert len(damaged) == 4
    damaged[0].write_bytes(b"truncated")
    damaged[1].unlink()
    third = run(tiny_folder, tmp_path / "c.safetensors")
    assert len(traced) == 2
    fresh = run(tiny_folder, tmp_path / "d.safetensors", **{"work-dir": tmp_path / "other"})
    assert len(traced) == 6
    for other in (second, third, fresh):
        for name in ("k_mean", "k_transform", "sensitivity"):
            mine, theirs = (getattr(tables.rows[0], name) for tables in (other, first))
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)
        for name in ("v_mean", "scale_modes", "token_log_frequency"):
            torch.testing.assert_close(getattr(other, name), getattr(first, name), rtol=1e-5, atol=1e-7)


def test_tables_are_normalised_and_say_where_they_come_from(tiny_folder: Path, tmp_path: Path) -> None:
    tables = run(tiny_folder, tmp_path / "t.safetensors")
    (rows,) = tables.rows
    assert rows.context == CONFIG.max_position_embeddings
    assert float(rows.sensitivity.mean()) == pytest.approx(1.0, abs=1e-5)
    assert float(tables.token_log_frequency.exp().sum()) == pytest.approx(1.0, abs=1e-4)
    assert (rows.sensitivity > 0).all()
    identity = rows.q_transform.transpose(-1, -2) @ rows.k_transform.float()
    torch.testing.assert_close(identity, torch.eye(CONFIG.head_dim).expand_as(identity), rtol=0, atol=1e-3)
    log = json.loads((tmp_path / "t.calibrate.json").read_text(encoding="utf-8"))
    assert log == tables.info["calibration"]
    assert log["tokens"] == 256
    assert log["measured"]["both"] > 0
    assert len(log["text"]["sha256"]) == 64
    again = CliRunner().invoke(calibrate.app, [*arguments(tiny_folder, tmp_path / "t.safetensors"), "--json"])
    assert json.loads(again.stdout) | {"command": ""} == log | {
        "command": "",
        "tables": str(tmp_path / "t.safetensors"),
    }


def test_more_frequent_tokens_get_higher_log_frequency() -> None:
    frequency, added = log_frequencies(torch.tensor([1] * 5 + [2] * 2 + [1] * 5 + [2] * 2), 4)
    assert frequency[1] > frequency[2] > frequency[0] == frequency[3]
    assert added in SMOOTHING


def test_windows_are_spread_and_do_not_overlap() -> None:
    windows = cut_windows(torch.arange(1000), 300, 100)
    assert windows[:, 0].tolist() == [0, 300, 600]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": "missing.txt"}, "cannot read missing.txt"),
        ({"tokens": 100000}, "the text has 640 tokens, fewer than the 99,968 asked for"),
        ({"tokens": 10}, "less than one window"),
        ({"chunk": 9}, "--chunk 9 must be at most --departure, 4"),
        ({"window": 63}, "--context 64 must be more than --window 63 + --departure 4"),
        ({"out": "tables.bin"}, "must end in .safetensors"),
        ({"out": "no/such/folder/t.safetensors"}, "does not exist"),
        ({"checkpoint": "no/such/checkpoint"}, "does not exist"),
        ({"work-dir": "/dev/null/x"}, "pass another --work-dir"),
    ],
)
def test_user_errors_are_one_line_and_exit_2(
    tiny_folder: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    result = CliRunner().invoke(calibrate.app, arguments(tiny_folder, tmp_path / "t.safetensors", **changes))
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("name", ["latin.txt", "broken.txt.gz"])
def test_a_file_that_is_not_text_is_a_user_error(tiny_folder: Path, tmp_path: Path, name: str) -> None:
    bad = tmp_path / name
    bad.write_bytes(b"\x1f\x8b\xff\xfe not text")
    result = CliRunner().invoke(calibrate.app, arguments(tiny_folder, tmp_path / "t.safetensors", text=bad))
    assert result.exit_code == 2
    assert "pass a text file with --text" in result.stderr
