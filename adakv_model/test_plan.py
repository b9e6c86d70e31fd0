"""The cache plan: where rows lie, what they cost, and how a bit budget becomes capacities and thresholds."""

import itertools
import json
import re
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adakv_model.budget import PlannedCache, allocate, allocate_unit_bits, plan_cache, tier_damages
from adakv_model.cache_options import BUDGETED, POLICIES, CacheOptions
from adakv_model.config import DEFAULT_MODEL, LlamaConfig, get_model
from adakv_model.errors import UserError
from adakv_model.features import FEATURE_SETS
from adakv_model.kv_cache import MixedPrecisionCache
from adakv_model.packing import padded
from adakv_model.plan import ALIGNMENT, FIRST_TIER, LAYOUT_COLUMNS, SINK, CachePlan, round_up
from adakv_model.quantizer import (
    BAND_BITS,
    GAUSSIAN_MSE,
    SUPPORTED_BITS,
    ScaleMode,
    join_bands,
    n_bands,
    row_bytes,
    scale_bytes,
    split_bands,
)
from adakv_model.tables import CalibrationTables, shipped_tables
from adakv_model.window import largest_chunk, left

CONFIG: LlamaConfig = get_model(DEFAULT_MODEL).config
TABLES = CalibrationTables.load(shipped_tables(DEFAULT_MODEL))
STATIC = tuple(p for p in POLICIES if p not in BUDGETED)

#: Buffers of MixedPrecisionCache that are the same for every prompt; everything else is state, but for `workspace`.
CONSTANTS = re.compile(
    r"cos|sin|token_log_frequency|capacities|(k_mean|v_mean|k_columns|q_columns|layout)_\d+|controller\..*"
)


def state_bytes(cache: MixedPrecisionCache) -> int:
    names = [name for name, _ in cache.named_buffers() if name != "workspace" and not CONSTANTS.fullmatch(name)]
    state = [cache.get_buffer(name) for name in names]
    return sum(b.numel() * b.element_size() for b in state)


@st.composite
def small_plans(draw: st.DrawFn) -> CachePlan:
    """Any shape the storage format allows, with arbitrary unit tables."""
    window, departure = draw(st.integers(1, 40)), draw(st.sampled_from([1, 2, 8, 32]))
    context, block = 1 + window + draw(st.integers(0, 150)), 16 if departure > 1 else 1
    weights = draw(st.lists(st.integers(0, 30), min_size=1, max_size=5))
    units = round_up(left(context - 1, window, departure) - 1, block) // block
    shares = np.cumsum([0, *weights]) * units // max(sum(weights), 1)
    capacities = [block * int(n) for n in np.diff(shares)]
    capacities[0] += block * units - sum(capacities)
    layers, heads, tiers = draw(st.integers(1, 3)), draw(st.integers(1, 3)), len(capacities)
    head_dim = draw(st.sampled_from([16, 32, 64, 128, 256]))
    random = np.random.default_rng(draw(st.integers(0, 2**20)))
    unit_bits = random.choice(row_widths(head_dim, random), size=(layers, heads, 2, tiers))
    unit_bits[:, :, 1] = random.choice(SUPPORTED_BITS, size=(layers, heads, tiers))  # V rows have no bands
    return CachePlan(
        context=context,
        window=window,
        window_bits=draw(st.sampled_from([8, 16])),
        chunk=draw(st.integers(1, largest_chunk(window, departure))),
        departure=departure,
        n_heads=heads * draw(st.integers(1, 3)),
        n_kv_heads=heads,
        n_layers=layers,
        head_dim=head_dim,
        vocab_size=draw(st.integers(1, 99)),
        tier_bits=(2, 3, 4, 8, 16)[:tiers],
        capacities=tuple(capacities),
        unit_bits=unit_bits,
        scale_modes=random.integers(0, 2, size=(layers, heads, 2)) | draw(st.sampled_from([0, int(ScaleMode.HALF)])),
    )


def row_widths(head_dim: int, random: np.random.Generator) -> list[int]:
    """Every uniform width, and some of unequal bands."""
    bands = random.choice(BAND_BITS, size=(6, n_bands(head_dim))).tolist()
    return [*SUPPORTED_BITS, *(join_bands(widths) for widths in bands)]


@given(small_plans())
@settings(max_examples=60, deadline=None)
def test_segments_are_aligned_disjoint_and_fill_the_buffer(plan: CachePlan) -> None:
    for layer in range(plan.n_layers):
        blocks = []
        for unit, segments in enumerate(plan.segments(layer)):
            for number, s in enumerate(segments):
                expected = [(16, 1), (plan.window_bits, plan.ring)]
                tiers = plan.unit_bits[layer, unit // 2, unit % 2]
                expected += [(int(b), c) for b, c in zip(tiers, plan.capacities, strict=True)]
                assert (s.bits, s.rows) == expected[number]
                held = s.rows if number == SINK else padded(s.rows)
                blocks.append((s.codes_offset, held * row_bytes(s.bits, plan.head_dim)))
                blocks.append((s.scale_offset, held * scale_bytes(s.bits, s.scale_mode)))
        assert all(offset % ALIGNMENT == 0 for offset, _ in blocks)
        ends = [offset + size for offset, size in blocks]
        for (start, _), end in zip(blocks[1:], ends, strict=False):
            assert 0 <= start - end < ALIGNMENT, "overlap, or padding beyond alignment"
        assert plan.layer_bytes(layer) - ends[-1] < ALIGNMENT
        assert plan.layer_bytes(layer) >= ends[-1]


@given(small_plans())
@settings(max_examples=30, deadline=None)
def test_layout_table_is_the_segments(plan: CachePlan) -> None:
    for layer in range(plan.n_layers):
        table = plan.layout(layer)
        assert table.dtype == torch.int32
        assert table.shape == (2 * plan.n_kv_heads, 2 + plan.n_tiers, len(LAYOUT_COLUMNS))
        for unit, segments in enumerate(plan.segments(layer)):
            for number, s in enumerate(segments):
                assert table[unit, number].tolist() == [getattr(s, column) for column in LAYOUT_COLUMNS]


@given(small_plans(), st.data())
@settings(max_examples=60, deadline=None)
def test_blocks_leave_as_the_definition_says_and_the_ring_holds_the_rest(plan: CachePlan, data: st.DataObject) -> None:
    gone = {0}
    for position in range(plan.context):
        if position % plan.departure == 0:
            gone |= set(range(1, position - plan.window + 1))
        assert plan.left(position) == len(gone)
        assert position - plan.left(position) < plan.ring
    assert plan.stored_in_tiers == len(gone) - 1
    start = data.draw(st.integers(0, plan.context))
    sizes = list(plan.chunks(start, plan.context - start))
    assert sum(sizes) == plan.context - start
    for size, end in zip(sizes, start + np.cumsum(sizes), strict=True):
        assert 1 <= size <= plan.chunk
        if plan.departure > 1:
            assert (end - size) // plan.departure == (end - 1) // plan.departure
            assert size == plan.chunk or end % plan.departure == 0 or end == plan.context


def same_plan(a: CachePlan, b: CachePlan) -> bool:
    return all(np.array_equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(CachePlan))


@given(small_plans())
@settings(max_examples=30, deadline=None)
def test_a_manifest_rebuilds_the_plan(plan: CachePlan) -> None:
    rebuilt = CachePlan.from_manifest(json.loads(json.dumps(plan.to_manifest())))
    assert same_plan(rebuilt, plan)
    assert all(torch.equal(rebuilt.layout(i), plan.layout(i)) for i in range(plan.n_layers))
    assert rebuilt.bytes_allocated == plan.bytes_allocated


@given(small_plans())
@settings(max_examples=30, deadline=None)
def test_pools_with_their_padding_are_the_layers(plan: CachePlan) -> None:
    layers = sum(plan.layer_bytes(i) for i in range(plan.n_layers))
    units = [unit for i in range(plan.n_layers) for unit in plan.segments(i)]
    blocks = 2 * len(units) * (2 + plan.n_tiers)
    empty = sum(  # rows that fill the last block of a tier
        (padded(s.rows) - s.rows) * (row_bytes(s.bits, plan.head_dim) + scale_bytes(s.bits, s.scale_mode))
        for unit in units
        for s in unit[FIRST_TIER:]
    )
    assert 0 <= layers - sum(plan.pool_bytes.values()) - empty < ALIGNMENT * blocks
    if plan.departure > 1:
        assert empty == 0


def build_cache(options: CacheOptions) -> MixedPrecisionCache:
    planned = plan_cache(CONFIG, TABLES, options)
    return MixedPrecisionCache(CONFIG, planned.plan, TABLES, planned.controller(TABLES))


@pytest.mark.parametrize(("context", "window", "kv_bits"), [(512, 32, None), (300, 48, 5.0), (2048, 16, 2.75)])
def test_bytes_allocated_are_the_buffers_of_an_adaptive_cache(context: int, window: int, kv_bits: float) -> None:
    for features in FEATURE_SETS:
        cache = build_cache(CacheOptions(context, window, kv_bits=kv_bits, features=features))
        assert cache.plan.bytes_allocated == state_bytes(cache)
        assert hasattr(cache, "last_logits") == (features != "fast") == cache.plan.observes


@pytest.mark.parametrize("policy", STATIC)
def test_bytes_allocated_are_the_buffers_of_a_static_cache(policy: str) -> None:
    cache = build_cache(CacheOptions(512, 32, policy))
    assert cache.plan.bytes_allocated == state_bytes(cache)


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
    (CacheOptions(context=8193), "more than the 8192 positions the model was trained for: choose a smaller one"),
    (CacheOptions(window=16, chunk=17, departure=1), r"--prefill-chunk 17 must lie between 1 and --window \(16\)"),
    (CacheOptions(chunk=17, departure=16), "--prefill-chunk 17 must lie between 1 and 16, as tokens leave"),
    (CacheOptions(chunk=0), "--prefill-chunk 0 must be at least 1"),
    (CacheOptions(kv_bits=2.0), "--kv-bits 2 is impossible .*: choose between [0-9.]+ and [0-9.]+"),
    (CacheOptions(kv_bits=17.0), "--kv-bits 17 is impossible .*: choose between"),
    (CacheOptions(kv_bits=float("nan")), "--kv-bits nan is impossible .*: choose between"),
    (CacheOptions(context=64, window=47, kv_bits=3.5), "with a window of 47: choose between"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[m[:40] for _, m in REFUSED])
def test_impossible_options_are_refused_with_a_remedy(options: CacheOptions, message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan_cache(CONFIG, TABLES, options)


@pytest.mark.parametrize("changes", [{"chunk": 0}, {"chunk": 9}, {"capacities": (4, 4)}, {"capacities": (7,)}])
def test_an_inconsistent_plan_cannot_be_built(changes: dict) -> None:
    plan = hand_plan()
    with pytest.raises(ValueError, match="must"):
        replace(plan, **changes)


def hand_plan() -> CachePlan:
    """One layer, one kv head of 64 channels; tiers of 2 and 4 bits, the second with V at 8."""
    return CachePlan(
        context=20,
        window=8,
        window_bits=8,
        chunk=4,
        n_heads=1,
        n_kv_heads=1,
        n_layers=1,
        head_dim=64,
        vocab_size=10,
        tier_bits=(2, 4),
        capacities=(6, 5),
        unit_bits=np.array([[[[2, 4], [2, 8]]]]),
        scale_modes=np.zeros((1, 1, 2), dtype=np.int64),
    )


def test_accounting_of_a_small_plan_by_hand() -> None:
    plan = hand_plan()
    # K: sink 128 + 2, window 16 * 64 + 32 (its ring), tiers of 6 and 5 rows in a block of 16 each: 16 * 16 + 16 and
    # 16 * 32 + 16; V's second tier 16 * 64 + 32. Everything is padded to 16.
    k = (128 + 16) + (1024 + 32) + (256 + 16) + (512 + 16)
    v = (128 + 16) + (1024 + 32) + (256 + 16) + (1024 + 32)
    assert plan.layer_bytes(0) == k + v
    assert plan.pool_bytes == {"sink": 260, "window": 2112, "tier_2": 204, "tier_4": 495}
    bookkeeping = {"progress": 12, "tiers": 20, "history": 80, "observed": 320, "attention": 384, "last_logits": 40}
    assert plan.bookkeeping_bytes == bookkeeping
    assert plan.bytes_allocated == k + v + 856
    assert plan.fp16_bytes == 20 * 2 * 64 * 2
    assert plan.bits_per_value == 8 * (k + v + 856) / (20 * 128)
    assert plan.lag == 4
    fast = replace(plan, predictions=False)
    assert plan.bytes_allocated - fast.bytes_allocated == 40
    assert [CachePlan.from_manifest(p.to_manifest()).observes for p in (plan, fast)] == [True, False]


def test_stored_bits_by_hand() -> None:
    plan = hand_plan()  # a scale costs 16 / 64 bits a value, 8 / 64 in narrow rows; tier widths are 2 and 6 on average
    assert plan.stored_bits([0, 0], 0) == 0.0
    assert plan.stored_bits([0, 0], 1) == 16.25
    assert plan.stored_bits([0, 0], 9) == pytest.approx((16.25 + 8 * 8.25) / 9)
    assert plan.stored_bits([3, 2], 14) == pytest.approx((16.25 + 8 * 8.25 + 3 * 2.125 + 2 * 6.1875) / 14)
    half = replace(plan, scale_modes=plan.scale_modes | int(ScaleMode.HALF))
    assert half.tier_costs.tolist() == [2.25, 6.25]


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


def test_a_plan_keeps_scales_in_one_form() -> None:
    modes = np.array([[[0, int(ScaleMode.HALF)]]])
    with pytest.raises(ValueError, match="one form"):
        replace(hand_plan(), scale_modes=modes)


def test_shipped_unit_tables_meet_every_tier_width() -> None:
    plan = plan_cache(CONFIG, TABLES, CacheOptions()).plan
    widths = np.array([np.mean(split_bands(int(b), 64)) for b in plan.unit_bits.flat]).reshape(-1, plan.n_tiers)
    assert widths.mean(0).tolist() == pytest.approx(list(plan.tier_bits), abs=0.02)
