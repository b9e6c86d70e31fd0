"""train_controller.py: features as the cache computes them, fitting, allocation, and the command itself."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

import train_controller
from adakv_model.controller import Controller, ImportanceScorer
from adakv_model.features import FEATURE_SETS, FEATURES
from adakv_model.kv_cache import MixedPrecisionCache
from adakv_model.model import build_model
from adakv_model.packing import BLOCK
from adakv_model.plan import CachePlan, round_up
from adakv_model.quantizer import GAUSSIAN_MSE
from adakv_model.tables import CalibrationTables, neutral_tables
from test_calibrate import run
from training import collect, fit
from training.attention import TracingCache
from training.controller_fit import ablations
from training.testing import CONFIG, WORDS, arguments, tiny_weights


@pytest.mark.parametrize("departure", [1, 4])
@pytest.mark.parametrize("chunks", [(4,) * 12, (1,) * 48, (3, 1, 4, 2, 2) * 4])
def test_features_equal_those_of_the_cache(chunks: tuple[int, ...], departure: int) -> None:
    """The mixed-precision cache with 16 bits everywhere sees what the float model sees, in any chunking."""
    count, window, chunk = sum(chunks), 8, 4
    tokens = torch.randint(WORDS, (1, count), generator=torch.Generator().manual_seed(4))
    frequency = torch.randn(CONFIG.vocab_size, generator=torch.Generator().manual_seed(5))
    mean = torch.zeros(CONFIG.n_layers, CONFIG.n_kv_heads, CONFIG.head_dim)
    units = (CONFIG.n_layers, CONFIG.n_kv_heads, 2)
    scorer = ImportanceScorer()
    tables = dataclasses.replace(neutral_tables(CONFIG), scorers={"all": scorer}, token_log_frequency=frequency)
    settings = collect.Settings(count, window, chunk, departure)
    held = settings.departing.stop - 1
    tiers = (held if departure == 1 else round_up(held, BLOCK), 0)
    shape = {name: getattr(CONFIG, name) for name in ("n_heads", "n_kv_heads", "n_layers", "head_dim", "vocab_size")}
    plan = CachePlan(
        context=count,
        window=window,
        window_bits=16,
        chunk=chunk,
        tier_bits=(16, 16),
        capacities=tiers,
        departure=departure,
        unit_bits=np.full((*units, 2), 16),
        scale_modes=np.zeros(units, dtype=np.int64),
        **shape,
    )
    cache = MixedPrecisionCache(CONFIG, plan, tables, Controller(scorer, [0.0]))
    seen: list[Tensor] = []
    assert cache.controller is not None
    cache.controller.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    model, starts = build_model(CONFIG, tiny_weights(), cache), itertools.accumulate(chunks, initial=0)
    with torch.no_grad():
        for p, n in zip(starts, chunks, strict=False):
            model(tokens[:, p : p + n], torch.tensor([p]))
            seen[-1] = seen[-1][: plan.left(p + n - 1) - plan.left(p - 1)]
    at_departure = torch.cat(seen)

    assert settings.lag == plan.lag
    tracing = TracingCache(CONFIG, count, mean, mean, window, plan.lag, departure)
    traced = build_model(CONFIG, tiny_weights(), tracing)
    features = collect.trace_window(traced, tracing, tokens[0], frequency, []).features
    expected = features[settings.departing]
    torch.testing.assert_close(at_departure, expected, rtol=5e-3, atol=5e-3)
    assert (expected.std(0) > 0.05).all()  # no column is trivially equal


def synthetic(count: int = 4000, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Damage is exponential with a mean that depends on two features; features have odd scales."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, len(FEATURES), generator=generator) * 7 + 100
    truth = 0.15 * (features[:, 0] - 100) - 0.1 * (features[:, 3] - 100)
    return features, truth.exp() * torch.empty(count).exponential_(generator=generator) * 1e-3


@pytest.mark.parametrize("loss", fit.LOSSES)
def test_a_fitted_scorer_ranks_unseen_tokens(loss: str) -> None:
    scorer = fit.fit_scorer(*synthetic(), fit.Recipe(loss, steps=200))
    features, damage = synthetic(seed=1)
    truth = 0.15 * features[:, 0] - 0.1 * features[:, 3]
    score = scorer(features)[:, 0]
    assert fit.spearman(score, truth) > 0.97
    verdict = fit.judge(score, damage, damage)
    assert verdict["oracle_over_static"] < verdict["score_over_static"] < 1 < verdict["random_over_static"]
    if loss == "exponential":  # an estimate of log E[damage], not only a ranking
        assert float(score.exp().mean()) == pytest.approx(float(damage.mean()), rel=0.1)


def test_a_scorer_ignores_the_columns_it_was_denied() -> None:
    features, damage = synthetic()
    scorer = fit.fit_scorer(features, damage, fit.Recipe(columns=fit.without("entropy"), steps=50))
    changed = features.clone()
    changed[:, FEATURES.index("entropy")] += 50.0
    assert torch.equal(scorer(features), scorer(changed))


def test_allocation_is_optimal_for_its_budget() -> None:
    score = torch.tensor([0.0, 1.5, -1.0, 4.0, 2.0])
    widths = fit.allocate(score, 3.0)
    error = torch.tensor([GAUSSIAN_MSE.get(b, 0.0) for b in range(9)], dtype=torch.float64)
    weight = score.double().exp()
    best = min(
        float((weight * error[list(bits)]).sum())
        for bits in itertools.product(fit.TIER_BITS, repeat=5)
        if sum(bits) <= int(widths.sum())
    )
    assert int(widths.sum()) <= 15
    assert float((weight * error[widths]).sum()) == pytest.approx(best)


def test_a_static_width_between_two_is_their_mixture() -> None:
    damage = torch.tensor([1.0, 3.0])
    assert fit.static_loss(damage, 3.0) == pytest.approx(4 * GAUSSIAN_MSE[3])
    assert fit.static_loss(damage, 2.5) == pytest.approx(2 * (GAUSSIAN_MSE[2] + GAUSSIAN_MSE[3]))
    equal = fit.by_window(torch.zeros(100), torch.ones(100), 2)
    assert len(equal) == 2


def test_quantiles_hold_the_ends_and_the_median() -> None:
    q = fit.quantiles(torch.arange(1001.0).flip(0), 257)
    assert len(q) == 257
    assert (q[0], q[128], q[256]) == (0.0, 500.0, 1000.0)


def test_spearman_averages_ties() -> None:
    assert fit.spearman(torch.tensor([1.0, 1.0, 2.0]), torch.tensor([1.0, 2.0, 3.0])) == pytest.approx(0.8660, abs=1e-4)


def train_arguments(folder: Path, tables: Path, **changes: Any) -> list[str]:
    options = arguments(folder, tables, **{"steps": 20, "on-policy": 3, "budgets": "9,12,15", **changes})
    options[options.index("--out")] = "--tables"
    return options


def test_training_fills_the_tables_and_repeats_itself(tiny_folder: Path, tmp_path: Path) -> None:
    tables = tmp_path / "t.safetensors"
    before = run(tiny_folder, tables)
    scorers = []
    for _ in range(2):
        result = CliRunner().invoke(train_controller.app, train_arguments(tiny_folder, tables))
        assert result.exit_code == 0, result.output
        after = CalibrationTables.load(tables)
        scorers.append(after.scorers)
    for features in FEATURE_SETS:
        first, second = (kept[features].state_dict() for kept in scorers)
        assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert torch.equal(before.rows[0].sensitivity, after.rows[0].sensitivity)
    for quantiles in after.score_quantiles.values():
        assert len(quantiles) == 257
        assert (quantiles.diff() >= 0).all()
        assert quantiles[0] < quantiles[-1]
    log = json.loads((tmp_path / "t.json").read_text(encoding="utf-8"))
    assert log == after.info
    assert log["controller"] == "trained"
    assert "calibration" in log
    assert set(log["training"]["held_out"]) == set(ablations())
    tuned = log["training"]["on_policy"]
    assert [entry["step"] for entry in tuned["log"]] == [0, 1, 2]
    assert set(tuned["divergence"]["held_out"]) == {"fitted", "fast", "paper", "tuned"}
    assert "captured" in result.output
    assert "paper" in result.output
    done = CliRunner().invoke(train_controller.app, [*train_arguments(tiny_folder, tables), "--json"])
    printed = json.loads(done.stdout)
    assert (printed["tables"], printed["held_out"]) == (str(tables), log["training"]["held_out"])


def test_other_shapes_few_windows_and_missing_tables_are_user_errors(tiny_folder: Path, tmp_path: Path) -> None:
    tables = tmp_path / "t.safetensors"
    good = run(tiny_folder, tables)
    other = tmp_path / "other.safetensors"
    dataclasses.replace(good, v_mean=good.v_mean[:1]).save(other)
    text_of = tmp_path / "text.txt"
    text_of.write_text("w1 w2", encoding="utf-8")
    for changes, message in (
        ({"tables": other}, "run adakv calibrate on this checkpoint"),
        ({"tables": tmp_path / "none.safetensors"}, "no calibration tables at"),
        ({"tables": text_of}, "must end in .safetensors"),
        ({"tokens": 128}, "training needs 4 or more"),
        ({"text": text_of}, "the text has 2 tokens"),
    ):
        path = changes.pop("tables", tables)
        assert isinstance(path, Path)
        result = CliRunner().invoke(train_controller.app, train_arguments(tiny_folder, path, **changes))
        assert result.exit_code == 2, result.output
        assert message in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
