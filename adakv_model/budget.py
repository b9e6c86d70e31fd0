"""From a bit budget to a cache plan: unit tables, tier capacities and the controller's thresholds.

The loss added by storing token t in tier k is modelled as w_t D_k with w_t = exp(score) the token's importance and
D_k = sum_b s_b MSE(bits[b, k]) / sum_b s_b over the sensitivities s of all bands of all units. Minimising
sum_t w_t D_k(t) + lambda c_k(t) (c_k: bits of a row) gives one threshold on the score between neighbouring tiers;
lambda is set so that the expected size, over the calibrated score distribution, meets the budget. Greedy allocation
over the convex hull is optimal up to one step (Shoham and Gersho, "Efficient bit allocation", IEEE Trans. ASSP 1988).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from adakv_model.cache_options import BUDGETED, DEFAULT_BITS, DEFAULT_WINDOW_BITS, CacheOptions
from adakv_model.config import LlamaConfig
from adakv_model.controller import Controller
from adakv_model.errors import UserError
from adakv_model.features import DEFAULT_FEATURES, needs_predictions
from adakv_model.packing import BLOCK
from adakv_model.plan import CachePlan, round_up
from adakv_model.quantizer import BAND_BITS, GAUSSIAN_MSE, WIDE_MSE, is_narrow, join_bands, split_bands
from adakv_model.tables import CalibrationTables
from adakv_model.window import left

WIDE_TIERS = (8, 16)  # tiers of an adaptive cache beside its three narrow ones
DEFAULT_SHARE = 0.05  # of the way from the smallest cache to the largest, if that is more than DEFAULT_BITS


@dataclass(frozen=True)
class PlannedCache:
    """A plan, the score thresholds between its tiers (rising, one fewer than tiers), and what the score is made of."""

    plan: CachePlan
    thresholds: tuple[float, ...]
    features: str = DEFAULT_FEATURES

    def controller(self, tables: CalibrationTables) -> Controller | None:
        """None where nothing is decided."""
        if not self.plan.adaptive:
            return None
        return Controller(tables.scorers[self.features], self.thresholds).eval()


def plan_cache(config: LlamaConfig, tables: CalibrationTables, options: CacheOptions) -> PlannedCache:
    """The cache for these options. Raises UserError where the budget is out of reach."""
    options.check(config)
    tables.check(config)
    if options.policy not in BUDGETED:
        return PlannedCache(_static_plan(config, tables, options), ())
    target = options.kv_bits
    sensitivity = tables.at(options.context).sensitivity.double().numpy()
    if options.policy == "tables":
        return PlannedCache(_tables_plan(config, tables, options, sensitivity, target), ())

    def plan_of(tiers: Sequence[float]) -> CachePlan:
        unit_bits = np.stack([allocate_unit_bits(sensitivity, b) for b in tiers], axis=-1)
        return _base_plan(config, tables, options, tuple(tiers), unit_bits)

    base = plan_of((2, *narrow_tiers(2.0)[1:], *WIDE_TIERS))  # as small as it gets
    low, high = (_with_all_in(base, k).bits_per_value for k in (0, base.n_tiers - 1))
    target = _budget(target, low, high, options)
    tokens = base.slots
    mean_cost = (target - low) * base.values / (tokens * base.values_per_token) + base.tier_costs[0]
    base = plan_of((*narrow_tiers(mean_cost - 8 / config.head_dim), *WIDE_TIERS))
    scores = _Scores(tables.score_quantiles[options.features].double().numpy())
    damages = tier_damages(base.unit_bits, sensitivity)
    damages = np.maximum(damages, WIDE_MSE[base.window_bits])  # a tier cannot undo the window's loss
    costs = base.tier_costs
    thresholds = solve_thresholds(scores, costs, damages, mean_cost)
    capacities = _integer_capacities(scores.shares(thresholds), tokens, base.slot_block)
    plan = _fit(replace(base, capacities=capacities), target)
    return PlannedCache(plan, tuple(float(t) for t in thresholds), options.features)


def narrow_tiers(mean_bits: float) -> tuple[float, ...]:
    """Mean bits of a code in the three narrow tiers of a cache whose older tokens have `mean_bits` on average.

    The first bits beyond 2 go to the few bands that cause most of the damage, so a tier of 2 bits throughout costs
    several times one of 2.2: the tiers stay close to the mean (docs/training.md).
    """
    beyond = max(mean_bits - 2, 0.0)
    low = min(2 + 0.5 * beyond, 3.5)
    return tuple(float(round(b, 2)) for b in (low, max(min(2 + 1.1 * beyond, 5.5), low + 0.05), min(2.9 + beyond, 7.0)))


def default_budget(low: float, high: float) -> float:
    """The budget where none is asked for, in bits a value, of caches that take from `low` to `high`.

    It grows where bookkeeping weighs more: on small models and short contexts.
    """
    return min(max(DEFAULT_BITS, low + DEFAULT_SHARE * (high - low)), high)


def _budget(target: float | None, low: float, high: float, options: CacheOptions) -> float:
    """The target, or the default. Raises UserError for a target out of reach."""
    if target is None:
        return default_budget(low, high)
    if not low <= target <= high:
        bounds = f"{math.ceil(low * 100) / 100:.2f} and {math.floor(high * 100) / 100:.2f}"
        raise UserError(
            f"--kv-bits {target:g} is impossible at context {options.context} with a window of {options.window}:"
            f" choose between {bounds} (sink, window, scales and bookkeeping included)"
        )
    return target


def allocate_unit_bits(sensitivity: np.ndarray, mean_bits: float) -> np.ndarray:
    """Row widths [L, KV, 2] (``quantizer.join_bands``) of all units with at most the given mean of bits and a small
    sum over bands of s_b MSE(b). sensitivity: [L, KV, 2, bands].

    A K row takes a width for each band; a V row one for all of them, as its channels are alike. Greedy in gain per
    bit: optimal but for what one step that no longer fits leaves over. Means of 8 bits and more are uniform: beyond
    8 bits quantization noise is below the fp16 activations'.
    """
    units = sensitivity.shape[:3]
    if mean_bits >= BAND_BITS[-1]:
        return np.full(units, int(mean_bits))
    n = sensitivity.shape[-1]
    keys = sensitivity[:, :, 0].reshape(-1)  # one item a band
    values = sensitivity[:, :, 1].sum(-1).reshape(-1)  # one item a row of n bands
    bits = allocate(np.concatenate((keys, values)), np.repeat([1, n], [keys.size, values.size]), mean_bits)
    rows = np.stack([bits[: keys.size].reshape(-1, n), np.repeat(bits[keys.size :, None], n, axis=1)], axis=1)
    return np.array([[join_bands(side) for side in unit] for unit in rows.tolist()]).reshape(units)


def allocate(weights: np.ndarray, sizes: np.ndarray, mean_bits: float) -> np.ndarray:
    """Widths of items with at most `mean_bits` bits on average and a small sum of weight * MSE(bits): int [n].

    sizes: int [n], what a bit of an item costs.
    """
    steps = []
    for narrow, wide in pairwise(BAND_BITS):
        gain = (GAUSSIAN_MSE[narrow] - GAUSSIAN_MSE[wide]) / (wide - narrow)
        costs = (wide - narrow) * sizes
        steps += [(-w * gain / s, i, wide, c) for i, (w, s, c) in enumerate(zip(weights, sizes, costs, strict=True))]
    bits, room = np.full(weights.shape, BAND_BITS[0]), int((mean_bits - BAND_BITS[0]) * sizes.sum() + 1e-6)
    blocked: set[int] = set()
    for _, item, width, cost in sorted(steps):
        if item in blocked or cost > room:
            blocked.add(item)
            continue
        bits[item] = width
        room -= cost
    return bits


def tier_damages(unit_bits: np.ndarray, sensitivity: np.ndarray) -> np.ndarray:
    """Sensitivity-weighted relative quantization error of each tier: [K]. unit_bits: [L, KV, 2, K]."""
    return unit_damages(unit_bits, sensitivity).sum((0, 1, 2)) / sensitivity.sum()


def unit_damages(unit_bits: np.ndarray, sensitivity: np.ndarray) -> np.ndarray:
    """Sum over bands of s_b MSE(b), by row and tier: [L, KV, 2, K]. unit_bits: [L, KV, 2, K]."""
    n = sensitivity.shape[-1]
    damages = np.empty(unit_bits.shape)
    for at in np.ndindex(unit_bits.shape):
        bits = int(unit_bits[at])
        table = GAUSSIAN_MSE if is_narrow(bits) else WIDE_MSE
        damages[at] = sum(s * table[b] for s, b in zip(sensitivity[at[:-1]], split_bands(bits, 8 * n), strict=True))
    return damages


class _Scores:
    """The calibrated distribution of the controller's score, from equally spaced quantiles."""

    def __init__(self, quantiles: np.ndarray) -> None:
        self.quantiles = quantiles

    def below(self, score: np.ndarray) -> np.ndarray:
        """Share of tokens with a lower score."""
        return np.interp(score, self.quantiles, np.linspace(0, 1, self.quantiles.size))

    def shares(self, thresholds: np.ndarray) -> np.ndarray:
        """Share of tokens in each tier: [K]."""
        return np.diff(np.concatenate(([0.0], self.below(thresholds), [1.0])))


def solve_thresholds(scores: _Scores, costs: np.ndarray, damages: np.ndarray, mean_cost: float) -> np.ndarray:
    """Rising thresholds [K - 1] whose expected bits per value are `mean_cost`."""
    slopes = np.diff(costs) / np.maximum(-np.diff(damages), 1e-30)  # bits paid per unit of damage avoided
    offsets = np.maximum.accumulate(np.log(slopes))
    low, high = scores.quantiles[0] - offsets[-1] - 1, scores.quantiles[-1] - offsets[0] + 1
    for _ in range(60):
        middle = (low + high) / 2
        if float(scores.shares(offsets + middle) @ costs) > mean_cost:
            low = middle
        else:
            high = middle
    return offsets + high


def _integer_capacities(shares: np.ndarray, slots: int, block: int) -> tuple[int, ...]:
    """Shares of `slots`, in whole blocks (largest remainders)."""
    exact = shares * (slots // block)
    whole = np.floor(exact).astype(int)
    for k in np.argsort(whole - exact, kind="stable")[: slots // block - int(whole.sum())]:
        whole[k] += 1
    return tuple(block * int(n) for n in whole)


def _fit(plan: CachePlan, target: float) -> CachePlan:
    """Lower single blocks of slots until everything allocated, alignment included, is within the target.

    Blocks of several slots leave a part of the target unused; narrow tiers then pass on to their wider neighbours what
    fits.
    """
    while plan.bits_per_value > target:
        plan = _moved(plan, max(k for k in range(1, plan.n_tiers) if plan.capacities[k] > 0), -1)
    if plan.slot_block > 1:
        for donor in range(plan.n_tiers - len(WIDE_TIERS) - 1):
            while plan.capacities[donor] and (wider := _moved(plan, donor, 1)).bits_per_value <= target:
                plan = wider
    return plan


def _moved(plan: CachePlan, tier: int, by: int) -> CachePlan:
    """The plan with one block of slots moved from `tier` to its neighbour."""
    capacities = list(plan.capacities)
    capacities[tier] -= plan.slot_block
    capacities[tier + by] += plan.slot_block
    return replace(plan, capacities=tuple(capacities))


def _with_all_in(plan: CachePlan, tier: int) -> CachePlan:
    capacities = tuple(plan.slots if k == tier else 0 for k in range(plan.n_tiers))
    return replace(plan, capacities=capacities)


def _tables_plan(
    config: LlamaConfig, tables: CalibrationTables, options: CacheOptions, sensitivity: np.ndarray, target: float | None
) -> CachePlan:
    """One tier for every token, of the widest unit table within the target."""

    def plan(mean_bits: float) -> CachePlan:
        return one_tier_plan(config, tables, options, sensitivity, mean_bits)

    low, high = float(BAND_BITS[0]), float(BAND_BITS[-1])
    target = _budget(target, plan(low).bits_per_value, plan(high).bits_per_value, options)
    for _ in range(16):
        middle = (low + high) / 2
        if plan(middle).bits_per_value > target:
            high = middle
        else:
            low = middle
    return plan(low)


def one_tier_plan(
    config: LlamaConfig, tables: CalibrationTables, options: CacheOptions, sensitivity: np.ndarray, mean_bits: float
) -> CachePlan:
    """A plan whose rows have `mean_bits` bits a code on average, every older token alike."""
    widths = allocate_unit_bits(sensitivity, mean_bits)[..., None]
    return _base_plan(config, tables, options, (round(mean_bits, 2),), widths)


def _static_plan(config: LlamaConfig, tables: CalibrationTables, options: CacheOptions) -> CachePlan:
    bits = 16 if options.policy == "fp16" else int(options.policy.split("-")[1])
    if options.window_bits is None:
        options = replace(options, window_bits=16 if bits == 16 else DEFAULT_WINDOW_BITS)
    units = (config.n_layers, config.n_kv_heads, 2, 1)
    return _base_plan(config, tables, options, (bits,), np.full(units, bits))


def _base_plan(
    config: LlamaConfig,
    tables: CalibrationTables,
    options: CacheOptions,
    tier_bits: tuple[float, ...],
    unit_bits: np.ndarray,
) -> CachePlan:
    """A plan with every tiered token in the first tier."""
    tokens = left(options.context - 1, options.window, options.block) - 1
    slots = round_up(tokens, BLOCK) if options.block > 1 else tokens
    return CachePlan(
        context=options.context,
        window=options.window,
        window_bits=options.window_bits or DEFAULT_WINDOW_BITS,
        chunk=options.chunk_size,
        departure=options.block,
        n_heads=config.n_heads,
        n_kv_heads=config.n_kv_heads,
        n_layers=config.n_layers,
        head_dim=config.head_dim,
        vocab_size=config.vocab_size,
        tier_bits=tier_bits,
        capacities=(slots, *[0] * (len(tier_bits) - 1)),
        unit_bits=unit_bits,
        scale_modes=tables.scale_modes.long().numpy(),
        policy=options.policy,
        predictions=options.policy == "adaptive" and needs_predictions(options.features),
    )
