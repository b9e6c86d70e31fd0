"""Budgets to plans: what is feasible, what thresholds and unit widths follow, what is refused and how."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adakv_model.budget import PlannedCache, allocate, allocate_unit_bits, plan_cache, tier_damages
from adakv_model.cache_options import BUDGETED, POLICIES, CacheOptions
from adakv_model.config import DEFAULT_MODEL, LlamaConfig, get_model
from adakv_model.errors import UserError
from adakv_model.quantizer import (
    BAND_BITS,
    GAUSSIAN_MSE,
    split_bands,
)
from adakv_model.tables import CalibrationTables, shipped_tables

CONFIG: LlamaConfig = get_model(DEFAULT_MODEL).config
TABLES = CalibrationTables.load(shipped_tables(DEFAULT_MODEL))
STATIC = tuple(p for p in POLICIES if p not in BUDGETED)


budgets = st.builds(
    CacheOptions,
    context=st.integers(64, 8192),
    window=st.integers(1, 46),
    departure=st.sampled_from([None, 1, 8]),
    kv_bits=st.floats(2.3, 16.0),
    window_bits=st.sampled_from([None, 8, 16]),
)


def plan_if_possible(options: CacheOptions) -> PlannedCache | None:
    """None where the budget is out of reach; any other refusal raises."""
    try:
        return plan_cache(CONFIG, TABLES, options)
    except UserError as error:
        if "is impossible at context" in str(error):
            return None
        raise


@given(budgets)
@settings(max_examples=40, deadline=None)
def test_a_plan_holds_the_context_within_the_budget_and_its_thresholds_rise(options: CacheOptions) -> None:
    planned = plan_if_possible(options)
    if planned is None:
        return
    plan, budget = planned.plan, options.kv_bits
    assert budget is not None
    assert min(plan.capacities) >= 0
    assert 0 <= sum(plan.capacities) - plan.stored_in_tiers < plan.slot_block
    assert all(capacity % plan.slot_block == 0 for capacity in plan.capacities)
    assert plan.bits_per_value <= budget
    assert len(planned.thresholds) == plan.n_tiers - 1
    assert list(planned.thresholds) == sorted(planned.thresholds)
    assert np.isfinite(planned.thresholds).all()
    if options.context >= 512:  # below, one token's 16-bit rows are a visible part of the budget
        block = 8 * plan.slot_block / options.context  # slots move in blocks, at most from 8 to 16 bits
        assert plan.bits_per_value >= 0.98 * budget - (block if plan.slot_block > 1 else 0)


def test_the_range_that_an_impossible_budget_names_is_possible() -> None:
    for context, window in [(64, 1), (64, 47), (300, 8), (512, 32), (2048, 32), (4096, 16), (8192, 62)]:
        with pytest.raises(UserError, match="--kv-bits 1 is impossible at context") as caught:
            plan_cache(CONFIG, TABLES, CacheOptions(context, window, kv_bits=1.0))
        found = re.search(r"choose between ([\d.]+) and ([\d.]+)", str(caught.value))
        assert found
        for bound in found.groups():
            plan_cache(CONFIG, TABLES, CacheOptions(context, window, kv_bits=float(bound)))


def test_more_bits_make_every_narrow_tier_wider_and_predict_less_damage() -> None:
    sensitivity = TABLES.at(2048).sensitivity.double().numpy()
    plans = [plan_cache(CONFIG, TABLES, CacheOptions(kv_bits=bits)).plan for bits in (2.5, 3.0, 3.5, 4.0, 6.0)]
    for tighter, looser in itertools.pairwise(plans):
        assert all(a < b for a, b in zip(tighter.tier_bits[:3], looser.tier_bits[:3], strict=True))
        damages = [tier_damages(plan.unit_bits, sensitivity) @ plan.capacities for plan in (tighter, looser)]
        assert damages[0] > damages[1]
    assert all(plan.tier_bits[3:] == (8, 16) for plan in plans)


@pytest.mark.parametrize("policy", STATIC)
def test_a_static_plan_has_one_tier_of_one_width(policy: str) -> None:
    planned = plan_cache(CONFIG, TABLES, CacheOptions(512, 32, policy))
    bits = 16 if policy == "fp16" else int(policy[-1])
    assert planned.thresholds == ()
    assert planned.plan.tier_bits == (bits,)
    assert set(planned.plan.unit_bits.flat) == {bits}
    assert planned.plan.capacities == (480 - 32,)
    assert planned.plan.window_bits == (16 if bits == 16 else 8)
    assert not planned.plan.adaptive


REFUSED = [
    (CacheOptions(policy="dynamic"), "unknown --kv 'dynamic': one of adaptive, tables, static-2"),
    (CacheOptions(policy="static-4", kv_bits=4.0), "--kv-bits is the budget of --kv adaptive"),
    (CacheOptions(policy="fp16", kv_bits=16.0), "--kv fp16 has a fixed width"),
    (CacheOptions(features="most"), "unknown --features 'most': one of fast, paper, all"),
    (CacheOptions(window=0), "--window 0 must be at least 1"),
    (CacheOptions(window=-5), "--window -5 must be at least 1"),
    (CacheOptions(window_bits=4), "--window-bits 4 must be 8 or 16"),
    (CacheOptions(context=33, window=32), "--context 33 must be at least 41 with --window 32 and --prefill-chunk 8"),
    (CacheOptions(context=33, window=32, chunk=8), "and --prefill-chunk 8, or --window at most 24"),
    (CacheOptions(window=10**9), "--window 1000000000 must be at most 2015 with --context 2048 and --prefill-chunk 32"),
    (CacheOptions(context=8193), "more than the 8192 positions the model was trained for: choose a smaller one"),
    (CacheOptions(window=16, chunk=17, departure=1), r"--prefill-chunk 17 must lie between 1 and --window \(16\)"),
    (CacheOptions(chunk=17, departure=16), "--prefill-chunk 17 must lie between 1 and 16, as tokens leave"),
    (CacheOptions(chunk=0), "--prefill-chunk 0 must be at least 1"),
    (CacheOptions(kv_bits=-1.0), "--kv-bits -1 must be above 0"),
    (CacheOptions(kv_bits=2.0), "--kv-bits 2 is impossible .*: choose between [0-9.]+ and [0-9.]+"),
    (CacheOptions(kv_bits=17.0), "--kv-bits 17 is impossible .*: choose between"),
    (CacheOptions(kv_bits=float("nan")), "--kv-bits nan is impossible .*: choose between"),
    (CacheOptions(context=64, window=47, kv_bits=3.5), "with a window of 47: choose between"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[m[:40] for _, m in REFUSED])
def test_impossible_options_are_refused_with_a_remedy(options: CacheOptions, message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan_cache(CONFIG, TABLES, options)


ONE_EACH = np.ones(4, dtype=np.int64)
sensitivities = st.lists(st.floats(1e-4, 1e3), min_size=4, max_size=4).map(np.array)


def noise(sensitivity: np.ndarray, bits: tuple[int, ...]) -> float:
    return float(sum(s * GAUSSIAN_MSE[b] for s, b in zip(sensitivity, bits, strict=True)))


def least_noise(sensitivity: np.ndarray, total_bits: int) -> float:
    every = itertools.product(BAND_BITS, repeat=len(sensitivity))
    return min(noise(sensitivity, bits) for bits in every if sum(bits) <= total_bits)


@given(sensitivities, st.sampled_from([2, 3, 4]))
@settings(max_examples=60, deadline=None)
def test_unit_bits_meet_their_mean_and_waste_less_than_one_step(sensitivity: np.ndarray, mean: int) -> None:
    """Exact where every step fits; a step from 4 to 8 bits that does not fit may leave 3 bits to the next ones."""
    bits = allocate(sensitivity, ONE_EACH, mean)
    assert bits.mean() == mean
    assert set(bits.tolist()) <= set(BAND_BITS)
    got = noise(sensitivity, tuple(bits.tolist()))
    assert got <= least_noise(sensitivity, 4 * mean - 3 if mean > 2 else 8) * (1 + 1e-9)


@given(sensitivities, st.sampled_from([2, 3]))
@settings(max_examples=100, deadline=None)
def test_unit_bits_are_optimal(sensitivity: np.ndarray, mean: int) -> None:
    bits = allocate(sensitivity, ONE_EACH, mean)
    assert noise(sensitivity, tuple(bits.tolist())) <= least_noise(sensitivity, 4 * mean) * (1 + 1e-9)


def test_unit_bits_give_the_sensitive_unit_more() -> None:
    unequal = np.ones((1, 1, 2, 4))
    unequal[0, 0, 1] = 100.0
    assert allocate_unit_bits(unequal, 3).tolist() == [[[2, 4]]]
    for bits in (8, 16):
        assert (allocate_unit_bits(np.ones((2, 3, 2, 4)), bits) == bits).all()


def test_k_rows_take_a_width_for_each_band_and_v_rows_one() -> None:
    random = np.random.default_rng(0)
    bits = allocate_unit_bits(random.lognormal(0.0, 2.0, size=(4, 3, 2, 4)), 3.0)
    widths = np.array([split_bands(int(b), 64) for b in bits.flat]).reshape(4, 3, 2, 4)
    assert len({tuple(w) for w in widths[:, :, 0].reshape(-1, 4)}) > 4
    assert (widths[:, :, 1] == widths[:, :, 1, :1]).all()
    assert 2.99 <= widths.mean() <= 3.0


def test_shipped_unit_tables_meet_every_tier_width() -> None:
    plan = plan_cache(CONFIG, TABLES, CacheOptions()).plan
    widths = np.array([np.mean(split_bands(int(b), 64)) for b in plan.unit_bits.flat]).reshape(-1, plan.n_tiers)
    assert widths.mean(0).tolist() == pytest.approx(list(plan.tier_bits), abs=0.02)
