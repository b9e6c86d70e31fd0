"""The simulated cache against the packed one, and what scoring and the policies promise, on a small random model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adakv_model import attention
from adakv_model.attention import UnitView
from adakv_model.budget import plan_cache
from adakv_model.cache_options import DEFAULT_BITS, CacheOptions
from adakv_model.checkpoints.testing_checkpoints import SMALL
from adakv_model.checkpoints.weights import Checkpoint, draw_weights
from adakv_model.controller import Controller
from adakv_model.errors import UserError
from adakv_model.kv_cache import FloatCache, MixedPrecisionCache
from adakv_model.model import build_model
from adakv_model.plan import CachePlan
from adakv_model.quantizer import ScaleMode, join_bands
from adakv_model.simulation.baselines import AsymmetricRows, SymmetricRows
from adakv_model.simulation.names import BUDGETED, NAMES
from adakv_model.simulation.plan_rows import PlanRows
from adakv_model.simulation.policies import Policy, make_policy, paper_thresholds
from adakv_model.simulation.scoring import Simulator
from adakv_model.simulation.simulator import SimulatedCache
from adakv_model.tables import CalibrationTables, neutral_tables

CONTEXT, WINDOW, CHUNK, COUNT = 96, 12, 6, 90
THRESHOLDS = (-1.0, 0.0, 1.0)


def checkpoint() -> Checkpoint:
    """Weights large enough that attention is far from uniform."""
    weights = {name: w * (1 if w.dim() == 1 else 6) for name, w in draw_weights(SMALL, 0).items()}
    return Checkpoint(SMALL, weights, None, None, "small", {"seed": 0}, random=True)


def tables(seed: int = 0) -> CalibrationTables:
    """Neutral tables with a K transform that is not orthogonal, and scores that cross the thresholds."""
    generator = torch.Generator().manual_seed(seed)
    base = neutral_tables(SMALL)
    (rows,) = base.rows
    noise = torch.randn(rows.k_transform.shape, generator=generator) * 0.1
    mean = torch.randn(rows.k_mean.shape, generator=generator) * 0.1
    scorer = base.scorers["all"]
    torch.nn.init.normal_(scorer.hidden.weight, std=0.3, generator=generator)
    torch.nn.init.normal_(scorer.score.weight, std=1.0, generator=generator)
    rows = replace(rows, k_transform=(rows.k_transform.float() + noise).half(), k_mean=mean)
    return replace(base, rows=(rows,), v_mean=mean.flip(0))


def plan_of(capacities: tuple[int, ...], half: bool = False, departure: int = 1) -> CachePlan:
    """Banded and plain rows side by side."""
    random = np.random.default_rng(1)
    bands = [join_bands(b) for b in ((3, 2), (4, 3), (8, 4), (2, 2))]
    tiers = len(capacities)
    modes = random.integers(0, 2, size=(2, 2, 2)) | (int(ScaleMode.HALF) if half else 0)
    unit_bits = random.choice([*bands, 2, 3, 4, 8], size=(2, 2, 2, tiers))
    unit_bits[:, :, 1] = random.choice([2, 3, 4, 8], size=(2, 2, tiers))
    shape = {name: getattr(SMALL, name) for name in ("n_heads", "n_kv_heads", "n_layers", "head_dim", "vocab_size")}
    return CachePlan(
        context=CONTEXT,
        window=WINDOW,
        window_bits=8,
        chunk=CHUNK if departure == 1 else departure,
        departure=departure,
        tier_bits=(2, 3, 4, 8)[:tiers],
        capacities=capacities,
        unit_bits=unit_bits,
        scale_modes=modes,
        policy="adaptive",
        **shape,
    )


def simulate(plan: CachePlan, controller: Controller | None) -> Policy:
    return Policy(
        name="test",
        rows=PlanRows(plan, tables()),
        window=plan.window,
        lag=plan.lag if controller else 0,
        capacities=plan.capacities,
        keeps_sink=True,
        decide=(lambda features, positions: controller(features).argmax(-1)) if controller else None,
        chunk=plan.chunk,
        bits_per_value=plan.bits_per_value,
        stored_bits=plan.stored_bits,
        plan=plan,
        departure=plan.departure,
    )


def tokens(batch: int = 1, count: int = COUNT) -> Tensor:
    return torch.randint(SMALL.vocab_size, (batch, count), generator=torch.Generator().manual_seed(3))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The packed cache in torch is many small operations."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def exact_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """The packed cache multiplies its rows in float, as the simulated one does."""

    def score(unit: UnitView, segment: int, rows: slice, queries: attention.Queries) -> Tensor:
        return queries.values @ unit.read(segment, torch.arange(rows.stop))[rows].T

    def accumulate(unit: UnitView, segment: int, rows: slice, weights: Tensor) -> Tensor:
        return weights @ unit.read(segment, torch.arange(rows.stop))[rows]

    monkeypatch.setattr(attention, "score", score)
    monkeypatch.setattr(attention, "accumulate", accumulate)


def run_both(plan: CachePlan) -> tuple[SimulatedCache, MixedPrecisionCache, Tensor, Tensor]:
    """Simulated and packed cache, with their logits: prefill in full chunks, then ragged ones and single tokens."""
    controller = Controller(tables().scorers["all"], THRESHOLDS).eval() if plan.adaptive else None
    packed = MixedPrecisionCache(SMALL, plan, tables(), controller)
    model = build_model(SMALL, checkpoint().weights, packed, prescale_norm=False)
    simulator = Simulator(checkpoint(), simulate(plan, controller), tables())
    ids, position = tokens(), 0
    simulated: list[Tensor] = []
    expected: list[Tensor] = []
    with torch.no_grad():
        ragged = [CHUNK] * 10 + [1, 5, 2, 6, 3, 1, 1] + [1] * 11
        if plan.departure > 1:
            starts = np.cumsum([0, *ragged[:-1]]).tolist()
            ragged = [n for at, size in zip(starts, ragged, strict=True) for n in plan.chunks(at, size)]
        for count in ragged:
            part = ids[:, position : position + count]
            simulator.feed(part, lambda _, logits: simulated.append(logits))
            expected.append(model(part, torch.tensor([position])))
            position += count
    return simulator.cache, packed, torch.cat(simulated, 1), torch.cat(expected, 1)


SHAPES = pytest.mark.parametrize(
    ("departure", "capacities"),
    [
        *((1, c) for c in ((30, 25, 20, 8), (10, 10, 30, 33), (83,))),
        *((8, c) for c in ((32, 16, 16, 16), (16, 16, 16, 32), (80,))),
        *((32, c) for c in ((16, 16, 16, 16), (64,))),
    ],
)


@pytest.mark.usefixtures("exact_products")
@pytest.mark.parametrize("half", [False, True], ids=["coded scales", "fp16 scales"])
@SHAPES
def test_tiers_and_logits_are_those_of_the_packed_cache(
    departure: int, capacities: tuple[int, ...], half: bool
) -> None:
    """Tight capacities make tokens spill."""
    plan = plan_of(capacities, half, departure)
    cache, packed, simulated, expected = run_both(plan)
    torch.testing.assert_close(simulated, expected, rtol=1e-3, atol=2e-3)
    left = slice(1, plan.left(COUNT - 1))
    assert torch.equal(cache.tiers[0, left], packed.tiers[left].long())
    assert cache.fill[0].tolist() == packed.progress[1:].tolist()
    if plan.adaptive:
        assert len(cache.tiers[0, left].unique()) == plan.n_tiers


@SHAPES
def test_integer_products_move_logits_less_than_the_cache_does(departure: int, capacities: tuple[int, ...]) -> None:
    """Measured: KL 1.1e-4 to 4.0e-4 nats a token, 0.3 to 2.3 % of what the cache costs; no tier differs."""
    plan = plan_of(capacities, departure=departure)
    cache, packed, simulated, expected = run_both(plan)
    left = slice(1, plan.left(COUNT - 1))
    assert (cache.tiers[0, left] == packed.tiers[left].long()).float().mean() > 0.95  # a tie may fall otherwise
    model = build_model(SMALL, checkpoint().weights, FloatCache(SMALL, CONTEXT), prescale_norm=False)
    with torch.no_grad():
        exact = model(tokens(), torch.tensor([0]))
    moved = kl(simulated, expected)
    assert moved < 1e-3
    assert moved < 0.1 * kl(exact, expected)


def kl(a: Tensor, b: Tensor) -> float:
    """KL(a || b) of logits [B, T, V], nats a token."""
    log_p, log_q = a.log_softmax(-1), b.log_softmax(-1)
    return float((log_p.exp() * (log_p - log_q)).sum(-1).mean())


@pytest.mark.parametrize(
    ("departure", "capacities", "message"),
    [
        (1, (30, 25, 20, 8), "is too long for a window of 12"),
        (8, (32, 16, 16, 16), "7 tokens at 4 cross a multiple of 8"),
    ],
)
def test_chunks_under_which_features_would_depend_on_the_cut_are_refused(
    departure: int, capacities: tuple[int, ...], message: str
) -> None:
    controller = Controller(tables().scorers["all"], THRESHOLDS).eval()
    simulator = Simulator(checkpoint(), simulate(plan_of(capacities, departure=departure), controller), tables())
    simulator.score(tokens(1, 4))
    with pytest.raises(ValueError, match=message):
        simulator.cache.begin(tokens(1, 7), torch.tensor([4]))


@pytest.mark.parametrize(("departure", "capacities"), [(1, (30, 25, 20, 8)), (8, (32, 16, 16, 16))])
def test_a_batch_and_its_copies_are_scored_as_each_alone(departure: int, capacities: tuple[int, ...]) -> None:
    plan = plan_of(capacities, departure=departure)
    controller = Controller(tables().scorers["all"], THRESHOLDS).eval()
    simulator = Simulator(checkpoint(), simulate(plan, controller), tables())
    ids = tokens(3)
    together = simulator.score(ids)
    for row in range(3):
        alone = simulator.score(ids[row : row + 1])
        torch.testing.assert_close(alone.log_probs[0], together.log_probs[row], rtol=1e-3, atol=1e-3)
        assert torch.equal(alone.tier_counts[0], together.tier_counts[row])
    prefix, endings = ids[:2, :60], [[[1, 2, 3], [4] * 17], [[5], [6, 7, 8, 9]]]
    for row, group in enumerate(simulator.score_continuations(prefix, endings)):
        for scored, ending in zip(group, endings[row], strict=True):
            alone = simulator.score(torch.cat((prefix[row], torch.tensor(ending))).unsqueeze(0))
            torch.testing.assert_close(scored.log_probs[0], alone.log_probs[0, 60:], rtol=1e-3, atol=1e-3)
            assert scored.stored_bits.item() == pytest.approx(alone.stored_bits.item())


def test_padding_changes_nothing() -> None:
    simulator = Simulator(checkpoint(), simulate(plan_of((83,)), None), tables())
    ids = tokens(2)
    padded = ids.clone()
    padded[1, 50:] = 7
    whole = simulator.score(padded, torch.tensor([COUNT, 50]))
    alone = simulator.score(ids[1:, :50])
    torch.testing.assert_close(whole.log_probs[1, :50], alone.log_probs[0], rtol=1e-3, atol=1e-3)
    assert not whole.log_probs[1, 50:].any()
    assert whole.tier_counts[1].tolist() == [50 - 1 - WINDOW]


def test_exact_rows_give_the_float_model() -> None:
    ids = tokens(2)
    parts: list[Tensor] = []
    policy = make_policy("fp16", SMALL, tables(), CacheOptions(CONTEXT, WINDOW))
    scored = Simulator(checkpoint(), policy, tables()).score(ids, on_logits=lambda _, x: parts.append(x))
    model = build_model(SMALL, checkpoint().weights, FloatCache(SMALL, CONTEXT), prescale_norm=False)
    with torch.no_grad():
        expected = model(ids, torch.tensor([0]))
    torch.testing.assert_close(torch.cat(parts, 1), expected, rtol=1e-4, atol=1e-4)
    log_p = expected.log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
    torch.testing.assert_close(scored.log_probs[:, 1:], log_p, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_every_policy_runs_and_keeps_its_budget(name: str) -> None:
    budget = 9.0  # bookkeeping of a tiny model weighs much
    policy = make_policy(name, SMALL, tables(), CacheOptions(CONTEXT, WINDOW, kv_bits=budget))
    scored = Simulator(checkpoint(), policy, tables()).score(tokens(2))
    assert torch.isfinite(scored.log_probs).all()
    limit = budget if name in (*BUDGETED, "tables") else float(name.split("-")[-1].replace("fp", "")) + 10
    assert policy.bits_per_value <= limit + 1e-9
    assert 2 <= scored.stored_bits.mean() <= 16.5


@pytest.mark.parametrize("name", BUDGETED)
def test_without_a_budget_every_policy_finds_one_in_reach(name: str) -> None:
    """Of a tiny model no policy keeps the default bits: its bookkeeping takes more. The same rule as an export's."""
    policy = make_policy(name, SMALL, tables(), CacheOptions(CONTEXT, WINDOW))
    if name == "adaptive":
        assert policy.plan is not None
        exported = plan_cache(SMALL, tables(), CacheOptions(CONTEXT, WINDOW)).plan
        assert policy.bits_per_value == exported.bits_per_value > DEFAULT_BITS


def test_unknown_policies_and_budgets_out_of_reach_are_user_errors() -> None:
    options = CacheOptions(CONTEXT, WINDOW, kv_bits=1.0)
    with pytest.raises(UserError, match="unknown policy 'best'"):
        make_policy("best", SMALL, tables(), options)
    for name in ("adaptive", "tables", "recency", "paper", "random"):
        with pytest.raises(UserError, match=r"impossible|out of reach"):
            make_policy(name, SMALL, tables(), options)


@given(st.floats(2.2, 15.5), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_the_paper_s_tier_shares_meet_their_mean(mean: float, seed: int) -> None:
    quantiles = torch.randn(257, generator=torch.Generator().manual_seed(seed)).sort().values
    costs = (2.1, 4.1, 8.1, 16.0)
    thresholds, shares = paper_thresholds(quantiles, costs, mean)
    assert sorted(thresholds) == list(thresholds)
    assert sum(shares) == pytest.approx(1.0)
    assert sum(c * s for c, s in zip(costs, shares, strict=True)) == pytest.approx(mean, abs=0.1)


@given(st.sampled_from([2, 3, 4, 8]), st.integers(0, 1000), st.floats(0.01, 100))
@settings(max_examples=40, deadline=None)
def test_baseline_rows_err_by_half_a_step_at_most(bits: int, seed: int, size: float) -> None:
    x = torch.randn(2, 2, 5, 16, generator=torch.Generator().manual_seed(seed)) * size
    tiers = torch.zeros(2, 5, dtype=torch.int64)
    symmetric = SymmetricRows(SMALL, (bits,)).demoted(0, 0, x, tiers)
    peak = x.abs().amax((1, 3), keepdim=True)
    assert ((symmetric - x).abs() <= peak / (2 ** (bits - 1) - 1) * 0.51).all()
    assert all(len(row.unique()) <= 2**bits for row in symmetric.transpose(1, 2).flatten(2).flatten(0, 1))
    asymmetric = AsymmetricRows(SMALL, (bits,)).demoted(0, 0, x, tiers)
    spread = x.amax(-1, keepdim=True) - x.amin(-1, keepdim=True)
    assert ((asymmetric - x).abs() <= spread / (2**bits - 1) * 0.51 + 1e-3 * x.abs().amax()).all()
    assert all(len(row.unique()) <= 2**bits for row in asymmetric.flatten(0, 2))
