"""The cache plan: where rows lie, what they cost, and how a bit budget becomes capacities and thresholds."""

import json
import re
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adakv_model.budget import plan_cache
from adakv_model.cache_options import BUDGETED, POLICIES, CacheOptions
from adakv_model.config import DEFAULT_MODEL, LlamaConfig, get_model
from adakv_model.features import FEATURE_SETS
from adakv_model.kv_cache import MixedPrecisionCache
from adakv_model.packing import padded
from adakv_model.plan import ALIGNMENT, FIRST_TIER, LAYOUT_COLUMNS, SINK, CachePlan, round_up
from adakv_model.quantizer import (
    BAND_BITS,
    SUPPORTED_BITS,
    ScaleMode,
    join_bands,
    n_bands,
    row_bytes,
    scale_bytes,
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


@pytest.mark.parametrize("changes", [{"chunk": 0}, {"chunk": 9}, {"capacities": (4, 4)}, {"capacities": (7,)}])
def test_an_inconsistent_plan_cannot_be_built(changes: dict[str, Any]) -> None:
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


def test_a_plan_keeps_scales_in_one_form() -> None:
    modes = np.array([[[0, int(ScaleMode.HALF)]]])
    with pytest.raises(ValueError, match="one form"):
        replace(hand_plan(), scale_modes=modes)
