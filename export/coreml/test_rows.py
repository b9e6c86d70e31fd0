"""Rows of the Core ML cache: packing is exact in fp16, and widths and padding are what the plan says."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from adakv_model.budget import PlannedCache, plan_cache
from adakv_model.cache_options import CacheOptions
from adakv_model.config import MODELS
from adakv_model.plan import CachePlan
from adakv_model.quantizer import ScaleMode, dequantize, hadamard, is_narrow, join_bands, quantize
from adakv_model.tables import CalibrationTables, neutral_tables, shipped_tables
from export.coreml.inputs import InputLayout
from export.coreml.layout import RowLayout, StateLayout
from export.coreml.plan import coarse_plan, tier_means, wider_rows
from export.coreml.rows import (
    NarrowTiers,
    by_channel,
    pack_row,
    quantize_window,
    row_transforms,
    unpack_row,
    window_levels,
)
from export.coreml.storage import ALIGNMENT, FP16, INT8, STORAGES, Storage
from export.coreml.weights import GROUP_SIZE, quantize_int4, quantize_int8, rounded
from export.options import FEATURES_USED

WIDTHS = (2, 3, 4, 8)
MIXED = (join_bands((8, 4, 3, 2)), join_bands((4, 3, 3, 2)), join_bands((2, 2, 2, 8)))
MODEL = "smollm2-135m-instruct"


@pytest.fixture(scope="module")
def tables() -> CalibrationTables:
    return CalibrationTables.load(shipped_tables(MODEL))


@pytest.fixture(scope="module")
def planned(tables: CalibrationTables) -> PlannedCache:
    return coarse_plan(
        plan_cache(MODELS[MODEL].config, tables, CacheOptions(departure=1, features=FEATURES_USED)), tables
    )


@pytest.mark.parametrize("kv_heads", [1, 3, 5, 32])
@pytest.mark.parametrize(("k_bits", "v_bits"), list(itertools.product((*WIDTHS, *MIXED), WIDTHS)))
@pytest.mark.parametrize("storage", STORAGES.values(), ids=lambda s: s.name)
def test_packed_rows_survive_storage_and_unpack_to_the_same_codes(
    storage: Storage, k_bits: int, v_bits: int, kv_heads: int
) -> None:
    row, tokens = RowLayout(k_bits, v_bits, kv_heads, 64, storage), 5
    generator = torch.Generator().manual_seed(k_bits * 10 + v_bits)
    bits = by_channel(row, "bits")
    assert bits.min() >= 2, "every channel has a width"
    codes = torch.floor(torch.rand(2 * kv_heads, 64, tokens, generator=generator) * 2.0**bits)
    codes[:, :, 0], codes[:, :, 1] = 0, 2.0 ** bits[:, :, 0] - 1  # the extremes
    scales = torch.rand(2 * kv_heads, 1, tokens, generator=generator).half().float()
    packed = pack_row(row, codes, scales)
    assert packed.shape == (row.channels, tokens)
    assert row.channels % storage.channel_alignment == 0
    assert torch.equal(packed.half().float(), packed), "fp16 must hold every element exactly"
    if storage is INT8:
        assert torch.equal(packed[: row.scales_channel].to(torch.int8).float(), packed[: row.scales_channel])
    levels, read = unpack_row(row, packed.reshape(1, row.channels, 1, tokens))
    expected = (2 * codes - (2.0**bits - 1)) / 2.0**bits
    if k_bits in WIDTHS:
        assert torch.equal(levels, expected)
    else:
        torch.testing.assert_close(levels, expected * by_channel(row, "gain"), rtol=0, atol=1e-6)
    assert torch.equal(read, scales)


def test_elements_per_row() -> None:
    """fp16: six 2-bit, four 3-bit and three 4-bit codes; an 8-bit code is two thirds. int8: as many as bits allow."""
    assert [FP16.elements(192, bits) for bits in WIDTHS] == [32, 48, 64, 128]
    assert [INT8.elements(192, bits) for bits in WIDTHS] == [48, 72, 96, 192]
    assert RowLayout(4, 3, 3, 64, INT8).bytes == 96 + 72 + 2 * 6
    assert RowLayout(4, 3, 3, 64).used_channels == 64 + 48 + 6


def test_quantizers_agree_with_the_reference() -> None:
    """Window rows, then every narrow row from the window's own codes: equal codes, values as the reference reads."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(6, 64, 9, generator=generator) * torch.rand(6, 1, 9, generator=generator) * 3
    codes, scale = quantize(x.transpose(1, 2), 8)
    fresh = quantize_window(x)
    assert torch.equal(fresh.codes, codes.transpose(1, 2).float())
    assert torch.allclose(fresh.scales[:, 0], scale.float() * 256, rtol=1e-3)
    window = dequantize(codes, scale, 8)
    plan = plan_of_one_layer()
    rows = [StateLayout(plan).row(0, tier) for tier in range(4)]
    narrow = NarrowTiers(rows)(window_levels(fresh.codes), scale.float().unsqueeze(1) * 256)
    for tier, row in enumerate(rows):
        levels, scales = unpack_row(row, pack_row(row, narrow.codes[tier], narrow.scales[tier]).reshape(1, -1, 1, 9))
        for unit in range(6):
            side, head = divmod(unit, 3)
            bits = int(plan.unit_bits[0, head, side, tier])
            mode = ScaleMode(int(plan.scale_modes[0, head, side]))
            expected, stored = quantize(window[unit], bits, mode)
            assert stored.dtype == torch.float16
            assert is_narrow(bits) or bits == 8
            assert torch.equal(narrow.codes[tier, unit].T, expected.float()), (tier, unit)
            values = dequantize(expected, stored, bits, mode)
            torch.testing.assert_close((levels * scales)[unit].T, values, rtol=2e-3, atol=1e-5)


def plan_of_one_layer() -> CachePlan:
    """Four narrow tiers: plain and mixed widths, plain 8 bits beside 4, both scale modes."""
    config = replace(MODELS[MODEL].config, n_layers=1)
    plan = plan_cache(
        config, neutral_tables(config), CacheOptions(kv_bits=10.0, departure=1, features=FEATURES_USED)
    ).plan
    bits = np.full((1, 3, 2, 5), 8)
    bits[0, :, 0, :4], bits[0, :, 1, :4] = [3, MIXED[0], 8, MIXED[1]], [2, 3, 4, 4]
    modes = np.full((1, 3, 2), int(ScaleMode.HALF))
    modes[0, :, 0] |= int(ScaleMode.UNBIASED)
    return replace(plan, unit_bits=bits, scale_modes=modes)


def test_transforms_undo_each_other(planned: PlannedCache, tables: CalibrationTables) -> None:
    """What attention needs of any row transform: logits and outputs as without it."""
    assert planned.plan.banded
    for used in (tables.for_plan(planned.plan), *neutral_tables(MODELS[MODEL].config).rows):
        maps = row_transforms(used, 7)
        identity = torch.eye(64).expand(3, -1, -1)
        torch.testing.assert_close(maps.query.transpose(1, 2) @ maps.store[:3], identity / 8, rtol=0, atol=1e-5)
        torch.testing.assert_close(maps.output @ maps.store[3:], identity, rtol=0, atol=1e-6)
        x = torch.randn(4, 64)
        torch.testing.assert_close(x @ maps.store[3].T, hadamard(x), rtol=0, atol=1e-5)


def test_states_take_at_most_45_percent_of_fp16_at_3_5_bits(planned: PlannedCache) -> None:
    layout = StateLayout(planned.plan)
    assert planned.plan.context == 2048
    assert layout.bytes_allocated <= 0.45 * planned.plan.fp16_bytes
    assert layout.bytes_allocated == sum(layout.pool_bytes.values())
    for shape in layout.shapes.values():
        assert all(dim == 1 or dim % ALIGNMENT == 0 for dim in shape)


def test_int8_inputs_take_fewer_bytes_for_the_same_codes(planned: PlannedCache) -> None:
    states, int8 = StateLayout(planned.plan), StateLayout(planned.plan, INT8)
    inputs = InputLayout(int8)
    arrays = sum(array.bytes for array in inputs.arrays.values())
    assert int8.bytes_allocated == sum(int8.pool_bytes.values()) == arrays + int8.pool_bytes["shared"]
    assert int8.bytes_allocated < 0.75 * states.bytes_allocated
    assert set(int8.shapes) == set(states.shared_shapes)
    assert inputs.output_bytes(planned.plan.chunk) < 0.06 * arrays, "pools must not come back"
    for kind in inputs.kinds:
        last = inputs.pools(kind)[-1].row.scales_channel
        assert inputs.first_channels(kind)[-1] + last == inputs.arrays[kind].channels


def test_heads_share_widths_and_padding_is_used(planned: PlannedCache, tables: CalibrationTables) -> None:
    """No row is longer than the plain allocation would make it, and no band could be wider in the same row."""
    plan = planned.plan
    assert (plan.unit_bits == plan.unit_bits[:, :1]).all()
    assert (plan.scale_modes == plan.scale_modes[:, :1]).all()
    assert (plan.scale_modes & int(ScaleMode.HALF)).all()
    fine = plan_cache(MODELS[MODEL].config, tables, CacheOptions(departure=1, features=FEATURES_USED)).plan
    assert plan.capacities == fine.capacities
    assert (tier_means(plan) >= np.minimum(tier_means(fine), plan.window_bits) - 0.05).all()
    layout = StateLayout(plan)
    for layer in range(plan.n_layers):
        for tier in range(plan.n_tiers):
            row = layout.row(layer, tier)
            assert all(wider.channels > row.channels for wider in wider_rows(row, plan.window_bits))
    rows = dict(list(layout.row_bits().items())[:3])  # the narrow tiers
    assert all(bits / 16 <= float(tier) * 4 / 3 / 16 + 0.1 for tier, bits in rows.items()), rows


@pytest.mark.parametrize("policy", ["static-2", "static-3", "static-4", "static-8", "fp16"])
def test_static_plans_have_a_layout(policy: str, tables: CalibrationTables) -> None:
    planned = coarse_plan(
        plan_cache(MODELS[MODEL].config, tables, CacheOptions(policy=policy, departure=1, features=FEATURES_USED)),
        tables,
    )
    layout = StateLayout(planned.plan)
    stored = sum(pool.slots for pool in layout.pools(0))
    assert stored >= planned.plan.context - 1
    assert ("observed" in layout.shapes) is False


def test_int4_reproduces_q4_1_weights() -> None:
    """w = d c + m with fp16 d and m, both extremes present, as llama.cpp writes it: only fp16 rounding is lost."""
    generator = np.random.default_rng(0)
    codes = generator.integers(0, 16, (64, 4, GROUP_SIZE))
    codes[:, :, 0], codes[:, :, 1] = 0, 15
    d = (generator.random((64, 4)) * 0.02 + 0.005).astype(np.float16).astype(np.float32)
    m = (-8 * d + generator.normal(0, 0.01, (64, 4))).astype(np.float16).astype(np.float32)
    weight = (codes * d[:, :, None] + m[:, :, None]).reshape(64, 128)
    packed, _, _ = quantize_int4(weight)
    assert np.array_equal(packed.reshape(codes.shape), codes)
    big = np.tile(weight, (8, 1))
    error = np.abs(rounded(torch.from_numpy(big), "int4", 7).numpy() - big).max()
    assert error < 0.02 * d.max()


def test_int8_rows_are_within_half_a_step() -> None:
    weight = np.random.default_rng(1).normal(0, 0.1, (16, 64)).astype(np.float16)
    codes, scale = quantize_int8(weight)
    assert (np.abs(codes * scale.astype(np.float32) - weight) <= 0.51 * scale.astype(np.float32)).all()


def test_an_int4_package_keeps_the_token_table_at_8_bits() -> None:
    weight = torch.from_numpy(np.random.default_rng(2).normal(0, 0.1, (1024, 64)).astype(np.float32))
    assert torch.equal(rounded(weight, "int4", 1024), rounded(weight, "int8", 1024))
    assert not torch.equal(rounded(weight, "int4", 1000), rounded(weight, "int8", 1000))
