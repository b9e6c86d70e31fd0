"""The parts of calibration and training: the K transform, measured sensitivity, the differentiable cache."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from adakv_model.attention import apply_rope
from adakv_model.budget import plan_cache
from adakv_model.cache_options import CacheOptions
from adakv_model.checkpoints.weights import Checkpoint
from adakv_model.model import build_model, rope_tables
from adakv_model.simulation.plan_rows import PlanRows
from adakv_model.simulation.policies import make_policy
from adakv_model.simulation.scoring import Simulator
from adakv_model.tables import neutral_tables
from training.calibration import row_tables
from training.collect import Settings, WindowRecord
from training.measure import PROBE_BITS, Probe, measure
from training.positions import PositionAverage
from training.soft_cache import SoftTierCache
from training.testing import CONFIG, WORDS, tiny_weights
from training.transforms import band_transforms

OPTIONS = CacheOptions(context=64, window=8, kv_bits=9.0)


def tiny() -> Checkpoint:
    return Checkpoint(CONFIG, tiny_weights(), None, None, "tiny", {"seed": 0}, random=True)


def moments(dim: int = 64, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Second moments of gradients and of rows, far from white and not aligned."""
    generator = torch.Generator().manual_seed(seed)
    factors = torch.randn(2, 3, dim, dim, generator=generator, dtype=torch.float64)
    scaled = factors * torch.logspace(0, -1, dim, dtype=torch.float64)
    both = scaled @ scaled.transpose(-1, -2) + 2.0 * torch.eye(dim)  # regular: the shrinkage hardly matters
    return both[0] * 1e-4, both[1]


def test_transformed_rows_are_alike_within_bands_and_bands_are_sorted() -> None:
    gradients, rows = moments()
    transform, cost = band_transforms(gradients, rows)
    variance = (transform @ rows @ transform.transpose(-1, -2)).diagonal(dim1=-2, dim2=-1).unflatten(-1, (4, -1))
    assert variance.mean().item() == pytest.approx(1.0, rel=0.05)
    torch.testing.assert_close(variance, variance.mean(-1, keepdim=True).expand_as(variance), rtol=0.01, atol=0.0)
    assert (cost.diff(dim=-1) <= 0).all()


def test_a_band_s_cost_is_the_loss_that_its_noise_adds() -> None:
    """Noise of relative variance e in every channel of band b costs e * cost[b], in the original coordinates."""
    gradients, rows = moments()
    transform, cost = band_transforms(gradients, rows)
    inverse = torch.linalg.inv(transform)
    for band in range(4):
        noise = torch.zeros(64, dtype=torch.float64)
        noise[band * 16 : band * 16 + 16] = 1.0
        covariance = inverse * noise @ inverse.transpose(-1, -2)
        loss = (covariance * gradients).sum((-2, -1))
        torch.testing.assert_close(loss, cost[:, band], rtol=0.01, atol=0.0)


@pytest.mark.parametrize(("count", "step"), [(1, 1), (40, 1), (512, 1), (1, 64), (4, 128)])
def test_position_averages_are_those_of_rotated_keys(count: int, step: int) -> None:
    """Mean and second moment of R_t x over t, against all the rotations one by one."""
    generator = torch.Generator().manual_seed(8)
    cos, sin = (x.double()[::step] for x in rope_tables(CONFIG, count * step))
    rows = torch.randn(2, 30, CONFIG.head_dim, generator=generator, dtype=torch.float64)
    rotated = torch.stack(
        [apply_rope(rows[:, i : i + 1].transpose(0, 1).expand(count, -1, -1), cos, sin) for i in range(30)]
    )  # [30, T, 2, D]
    average = PositionAverage(CONFIG, count, step)
    expected = torch.einsum("ntkc,ntkd->kcd", rotated, rotated) / (30 * count)
    moment = torch.einsum("knc,knd->kcd", rows, rows) / 30
    torch.testing.assert_close(average.second_moment(moment), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(average.mean(rows.mean(1)), rotated.mean((0, 1)), rtol=1e-4, atol=1e-5)


def test_tables_of_a_context_have_alike_channels_at_its_positions() -> None:
    """Keys rotated as in a cache of that length have unit variance in every band; under the tables of a shorter cache
    their variance grows."""
    generator = torch.Generator().manual_seed(9)
    config = replace(CONFIG, head_dim=64, rope_theta=100000.0, max_position_embeddings=8192)
    factor = torch.randn(64, 64, generator=generator, dtype=torch.float64) * torch.logspace(0, -2, 64).double()
    mean = 3 * torch.randn(64, generator=generator, dtype=torch.float64)
    rows = torch.randn(8192, 64, generator=generator, dtype=torch.float64) @ factor.T + mean
    cos, sin = (x.double() for x in rope_tables(config, 8192))
    keys = apply_rope(rows.unsqueeze(1), cos, sin)[:, 0]
    central = (rows - mean).T @ (rows - mean) / 8192
    record = WindowRecord(
        features=torch.zeros(2048, 8),
        damage=torch.ones(2, 1, 1, 2, 2048),
        k_outer=torch.stack((torch.eye(64), central.float())).reshape(1, 2, 1, 64, 64) * 2047,
    )
    tables = row_tables(config, [record], Settings(), mean.float().reshape(1, 1, 64))
    assert [t.context for t in tables] == [512, 1024, 2048, 4096, 8192]
    variance = {t.context: ((keys - t.k_mean[0, 0]) @ t.k_transform[0, 0].double().T).square() for t in tables}
    for context, value in variance.items():
        bands = value[:context].mean(0).unflatten(-1, (4, 16)).mean(-1)
        torch.testing.assert_close(bands, torch.ones_like(bands), rtol=0.25, atol=0.0)
    assert variance[512].mean() > 2 * variance[8192].mean()


def test_measured_sensitivities_add_up_to_what_was_measured(tmp_path: Path) -> None:
    """And a second run only reads its files."""
    window = torch.randint(WORDS, (64,), generator=torch.Generator().manual_seed(5))
    results = []
    for _ in range(2):
        tables = neutral_tables(CONFIG)
        results.append((measure(Probe(tiny(), tables, window, 8, tmp_path)), tables))
    (first, tables), (second, again) = results
    assert first == second
    assert torch.equal(tables.rows[0].sensitivity, again.rows[0].sensitivity)
    assert tables.rows[0].sensitivity.mean().item() == pytest.approx(1.0, abs=1e-5)
    assert first["measured"]["k"] > 0
    assert first["measured"]["both"] == pytest.approx(first["measured"]["k"] + first["measured"]["v"], rel=0.5)
    probe = Probe(tiny(), tables, window, 8, tmp_path)
    plan = probe.plan()
    whole = probe.cost(plan, [(layer, 0) for layer in range(CONFIG.n_layers)])
    assert whole < first["measured"]["k"] * 2
    assert PROBE_BITS == 2.5


def test_one_hot_weights_read_what_the_simulated_cache_reads() -> None:
    tokens = torch.randint(WORDS, (1, 60), generator=torch.Generator().manual_seed(6))
    tables, parts = neutral_tables(CONFIG), []
    policy = make_policy("adaptive", CONFIG, tables, OPTIONS)
    simulator = Simulator(tiny(), policy, tables)
    simulator.score(tokens, on_logits=lambda _, logits: parts.append(logits))
    cache = SoftTierCache(CONFIG, PlanRows(plan_cache(CONFIG, tables, OPTIONS).plan, tables), 60)
    cache.weights = torch.nn.functional.one_hot(simulator.cache.tiers[0, :60], len(policy.capacities)).float()
    logits = build_model(CONFIG, tiny_weights(), cache, prescale_norm=False)(tokens, torch.tensor([0]))
    torch.testing.assert_close(logits, torch.cat(parts, 1), rtol=1e-3, atol=1e-3)


def test_gradients_of_tier_weights_are_those_of_the_loss() -> None:
    """A finite difference in the direction from one tier to another."""
    tokens = torch.randint(WORDS, (1, 40), generator=torch.Generator().manual_seed(7))
    tables = neutral_tables(CONFIG)
    plan = plan_cache(CONFIG, tables, replace(OPTIONS, context=40, kv_bits=12.0)).plan
    cache = SoftTierCache(CONFIG, PlanRows(plan, tables), 40)
    model = build_model(CONFIG, tiny_weights(), cache, prescale_norm=False).requires_grad_(False)

    def loss(weights: Tensor) -> Tensor:
        cache.weights = weights
        return model(tokens, torch.tensor([0]))[0].log_softmax(-1)[:, 3].mean()

    start = torch.zeros(40, plan.n_tiers)
    start[:, 3] = 1.0  # 8 bits: later layers' codes move little
    direction = torch.zeros_like(start)
    direction[1, 0], direction[1, 3] = 1.0, -1.0
    weights = start.clone().requires_grad_()
    loss(weights).backward()
    assert weights.grad is not None
    predicted = float((weights.grad * direction).sum())
    with torch.no_grad():
        step = 0.05
        measured = float(loss(start + step * direction) - loss(start - step * direction)) / (2 * step)
    assert predicted == pytest.approx(measured, rel=0.2, abs=1e-5)
