"""From a cache plan to the widths that Core ML unpacks cheaply: shared by a layer's heads, padding put to use."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np

from adakv_model.budget import PlannedCache, allocate_unit_bits, unit_damages
from adakv_model.cache_options import BUDGETED
from adakv_model.plan import CachePlan
from adakv_model.quantizer import BAND_BITS, ScaleMode, join_bands, row_bytes, split_bands
from adakv_model.tables import CalibrationTables
from export.coreml.layout import RowLayout


def coarse_plan(planned: PlannedCache, tables: CalibrationTables) -> PlannedCache:
    """The same cache with widths that all heads of a layer share, fp16 scales, and padding put to use.

    A row is padded to a multiple of 32 elements; bands of K, or V, take their next width where the row stays as long,
    whatever lowers the predicted damage most first. No tier is wider than the window: a row that passed through 8 bits
    holds no more, whatever its nominal width. The padding is that of fp16 states for every storage, so that both forms
    of a cache hold the same codes.
    """
    shared = planned.plan.scale_modes.mean(1, keepdims=True) >= 0.5 * int(ScaleMode.UNBIASED)
    modes = np.where(shared, int(ScaleMode.UNBIASED), int(ScaleMode.RMS)) | int(ScaleMode.HALF)
    plan = replace(planned.plan, scale_modes=modes.repeat(planned.plan.n_kv_heads, axis=1))
    if plan.policy not in BUDGETED:
        return replace(planned, plan=plan)
    sensitivity = tables.at(plan.context).sensitivity.double().numpy().sum(1, keepdims=True)  # [L, 1, 2, bands]
    means = np.minimum(tier_means(plan), plan.window_bits)
    widths = np.stack([allocate_unit_bits(sensitivity, float(b)) for b in means], axis=-1)  # [L, 1, 2, K]
    for layer in range(plan.n_layers):
        for tier in range(plan.n_tiers):
            k_bits, v_bits = (int(b) for b in widths[layer, 0, :, tier])
            row = RowLayout(k_bits, v_bits, plan.n_kv_heads, plan.head_dim)
            row = _use_padding(row, sensitivity[layer], plan.window_bits)
            widths[layer, 0, :, tier] = row.k_bits, row.v_bits
    return replace(planned, plan=replace(plan, unit_bits=widths.repeat(plan.n_kv_heads, axis=1)))


def tier_means(plan: CachePlan) -> np.ndarray:
    """Mean bits of a code in each tier: [K]."""
    bits = np.vectorize(lambda b: 8 * row_bytes(int(b), plan.head_dim) / plan.head_dim, otypes=[float])
    return bits(plan.unit_bits).reshape(-1, plan.n_tiers).mean(0)


def _use_padding(row: RowLayout, sensitivity: np.ndarray, widest: int) -> RowLayout:
    """sensitivity: [1, 2, bands]."""

    def damage(row: RowLayout) -> float:
        return float(unit_damages(np.array([[[[row.k_bits], [row.v_bits]]]]), sensitivity[None]).sum())

    while options := [wider for wider in wider_rows(row, widest) if wider.channels <= row.channels]:
        row = min(options, key=damage)
    return row


def wider_rows(row: RowLayout, widest: int) -> Iterator[RowLayout]:
    """The row with one band of K, or V, at its next width."""
    bands = split_bands(row.k_bits, row.head_dim)
    following = {bits: wider for bits, wider in pairwise(BAND_BITS) if wider <= widest}
    for i, bits in enumerate(bands):
        if bits in following:
            yield replace(row, k_bits=join_bands([*bands[:i], following[bits], *bands[i + 1 :]]))
    if row.v_bits in following:
        yield replace(row, v_bits=following[row.v_bits])
